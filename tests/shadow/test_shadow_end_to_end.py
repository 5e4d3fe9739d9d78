import copy
import weakref

import pytest
import torch
from lightning_harness import PRECISIONS, classifier, fit, manual, outcome
from shadow_harness import Net, loss_on, same, state_of
from torch import nn

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.shadow import ShadowPass

BATCH = (24, 16)


def monitored(model, tmp, precision="32-true", every=2, **options):
    monitor = NumericsMonitor(
        every_n_steps=3, summary=False, strict=True, dir=str(tmp), shadow_every_n_steps=every
    )
    left = outcome(model, *fit(model, tmp, [monitor], precision, **options))
    return left, numwatch.open_run(monitor.directory)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_monitor_with_shadows_leaves_the_run_bitwise_alone(precision, tmp_path):
    bare, watched = classifier(), classifier()
    theirs = outcome(bare, *fit(bare, tmp_path, precision=precision))
    ours, run = monitored(watched, tmp_path, precision)
    assert ours == theirs
    shadows = run.shadows().to_pydict()
    assert sorted(set(shadows["step"])) == [0, 2, 4, 6]
    bound = {"32": 0.0, "16": 2.0**-10, "bf": 2.0**-7}[precision[:2]] * 40
    assert max(shadows["relative_error"]) <= bound
    assert (max(shadows["relative_error"]) > 0) == (precision != "32-true")
    # Each has the full rows of its step beside it.
    assert set(shadows["step"]) <= set(run.tensors(slot="head:grad_output")["step"].to_pylist())


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_first_micro_batch_of_a_window_is_compared(precision, tmp_path):
    bare, watched = classifier(), classifier()
    options = {"precision": precision, "accumulate_grad_batches": 2}
    theirs = outcome(bare, *fit(bare, tmp_path, **options))
    ours, run = monitored(watched, tmp_path, every=1, **options)
    assert ours == theirs
    shadows = run.shadows().to_pydict()
    assert sorted(set(shadows["step"])) == [0, 1, 2, 3]
    output = [
        n
        for slot, n in zip(shadows["slot"], shadows["sampled"], strict=True)
        if slot == "head:grad_output"
    ]
    assert output == [4 * 4] * 4
    assert max(shadows["relative_error"]) <= (0 if precision == "32-true" else 0.05)


def test_manual_optimization_has_none_and_says_so(tmp_path):
    model = classifier(training_step=manual, automatic_optimization=False)
    with pytest.warns(RuntimeWarning, match="no shadow steps.*steps its optimizers itself"):
        _, run = monitored(model, tmp_path)
    assert run.shadows().num_rows == 0
    assert run.steps().num_rows == 8


def train(model, tmp, *, every, steps=4, dtype=None, micro_batches=1):
    """A plain loop under a scaler, its randomness and its record."""
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=dtype is not None)
    with numwatch.watch(
        model,
        optimizer,
        scaler=scaler,
        dir=tmp,
        every_n_steps=10,
        summary=False,
        strict=True,
        shadow_every_n_steps=every,
    ) as watch:
        for _ in range(steps):
            for _ in range(micro_batches):
                loss_of = loss_on(torch.randn(*BATCH))
                watch.shadow(loss_of)
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = loss_of(model)
                scaler.scale(loss).backward()
                watch.add_loss(loss)
            scaler.step(optimizer)
            scaler.update()
            watch.step()
            optimizer.zero_grad()
    return state_of(model), numwatch.open_run(tmp)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_plain_loop(dtype, micro_batches, tmp_path):
    options = {"dtype": dtype, "micro_batches": micro_batches}
    model = Net()
    twin = copy.deepcopy(model)
    theirs, none = train(twin, tmp_path / "a", every=0, **options)
    ours, run = train(model, tmp_path / "b", every=2, **options)
    assert same(ours, theirs)
    assert model.calls == twin.calls == 4 * micro_batches
    assert none.shadows().num_rows == 0
    shadows = run.shadows().to_pydict()
    assert sorted(set(shadows["step"])) == [0, 2]
    assert max(shadows["relative_error"]) <= (0 if dtype is None else 40 * torch.finfo(dtype).eps)
    twice = [
        n
        for slot, n in zip(shadows["slot"], shadows["sampled"], strict=True)
        if slot == "twice:grad_output"
    ]
    assert twice == [2 * 24 * 32] * 2  # two calls, of the first micro-batch alone


def test_loss_scale_is_taken_off_wherever_it_stands(tmp_path):
    """A truth below FP16's range: at scale 1 it is flushed, at 2^20 it is not."""
    found = {}
    for scale in (1.0, 2.0**20):
        model = nn.Sequential(nn.Linear(16, 8))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with numwatch.watch(
            model, scaler=scaler, dir=tmp_path / str(scale), summary=False, shadow_every_n_steps=1
        ) as watch:
            loss_of = lambda m: m(torch.ones(4, 16)).float().sum() * 2.0**-30  # noqa: E731
            watch.shadow(loss_of)
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(model)
            scaler.scale(loss).backward()
            watch.step(loss)
        rows = numwatch.open_run(tmp_path / str(scale)).shadows().to_pylist()
        found[scale] = {row["slot"]: row for row in rows}["0:grad_output"]
    assert (found[1.0]["flushed"], found[1.0]["zeros"], found[1.0]["sampled"]) == (32, 0, 32)
    assert found[1.0]["relative_error"] == 1.0
    assert (found[2.0**20]["flushed"], found[2.0**20]["relative_error"]) == (0, 0.0)


def test_hooks_and_samples_are_gone_after_the_step(tmp_path, count_hooks, monkeypatch):
    samples = []
    run = ShadowPass.run

    def spied(self, step):
        found = run(self, step)
        samples.extend(weakref.ref(s.values) for kept in found.values() for s in kept)
        return found

    monkeypatch.setattr(ShadowPass, "run", spied)
    model = Net()
    hooks = count_hooks(model)
    train(model, tmp_path, every=1)
    assert count_hooks(model) == hooks
    assert samples
    assert all(ref() is None for ref in samples)


def test_shadow_is_charged_to_numwatch(tmp_path):
    model = Net()
    with numwatch.watch(model, dir=tmp_path, summary=False, shadow_every_n_steps=2) as watch:
        for _ in range(2):
            watch.shadow(
                lambda m: (torch.linalg.svd(torch.randn(150, 150)), loss_on(torch.ones(*BATCH))(m))[
                    1
                ]
            )
            loss_on(torch.ones(*BATCH))(model).backward()
            watch.step()
    seconds = numwatch.open_run(tmp_path).steps()["numwatch_seconds"].to_pylist()
    assert seconds[0] > seconds[1]


def test_strict_does_not_raise_what_the_step_cannot(tmp_path):
    model = Net()
    with numwatch.watch(
        model, dir=tmp_path, summary=False, strict=True, shadow_every_n_steps=1
    ) as watch:
        with pytest.warns(
            RuntimeWarning, match="no shadow steps, the training goes on: ValueError: no"
        ):
            watch.shadow(lambda _: (_ for _ in ()).throw(ValueError("no")))
        loss_on(torch.ones(*BATCH))(model).backward()
        watch.step()
    assert numwatch.open_run(tmp_path).tensors().num_rows > 0
