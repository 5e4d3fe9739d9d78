"""The run with searches, capsules and skipped steps is bitwise the run without."""

import gc
import weakref

import pytest
import pytorch_lightning as pl
import torch
from planted import (
    Linear,
    NaiveSoftmax,
    Trap,
    ZeroNorm,
    bad_datum,
    batches,
    fit,
    fp16,
    model,
    origins,
)
from torch import nn

import numwatch
from numwatch.record.capsule import load_capsule
from numwatch.taps.generators import Generators, RandomStates


def left(made, trainer):
    """All a run leaves behind, bit for bit, NaN included."""
    tensors = {
        **made.state_dict(),
        **{f"{n}.buffer": b for n, b in made.named_buffers()},
        **{f"{n}.grad": p.grad for n, p in made.named_parameters() if p.grad is not None},
        "rng": torch.get_rng_state(),
    }
    scaler = trainer.scaler
    return (
        {name: tensor.reshape(-1).view(torch.uint8).tolist() for name, tensor in tensors.items()},
        None if scaler is None else scaler.state_dict(),
        trainer.global_step,
        {name: str(value) for name, value in trainer.callback_metrics.items()},
    )


@pytest.mark.parametrize(
    ("make", "options", "count"),
    [
        (lambda: model(NaiveSoftmax), lambda: fp16(2.0**40), 3),
        (lambda: model(ZeroNorm), lambda: {"precision": "bf16-mixed"}, 1),
        (lambda: model(ZeroNorm), lambda: {"precision": "32-true"}, 1),
        (lambda: model(NaiveSoftmax), lambda: {**fp16(), "accumulate_grad_batches": 2}, 2),
    ],
)
def test_training_is_bitwise_the_same(make, options, count, tmp_path):
    bare, watched = make(), make()
    theirs = left(bare, fit(bare, tmp_path, steps=14, monitor=False, **options())[0])
    trainer, run = fit(watched, tmp_path, steps=14, **options())
    assert left(watched, trainer) == theirs
    assert len(origins(run)) == count
    assert all(found["phase"] != "unknown" for found in origins(run))


@pytest.mark.parametrize("options", [fp16, lambda: {"precision": "bf16-mixed"}])
def test_batchnorm_dropout_and_metrics_too(options, tmp_path):
    bare, watched = Linear(), Linear()
    theirs = left(bare, fit(bare, tmp_path, batches(bad_datum), monitor=False, **options())[0])
    trainer, run = fit(watched, tmp_path, batches(bad_datum), **options())
    assert left(watched, trainer) == theirs
    assert [found["phase"] for found in origins(run)] == ["data"]


def test_no_batch_outlives_its_step(tmp_path):
    seen = []

    class Watcher(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            gc.collect()
            assert all(ref() is None for ref in seen[:-1])  # Lightning itself holds the last
            seen.append(weakref.ref(batch["x"]))

    class Fresh(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            x = torch.randn(8, 8)
            return {"x": x * torch.nan if index % 3 == 2 else x, "y": torch.arange(8) % 2}

    data = torch.utils.data.DataLoader(Fresh(), batch_size=None)
    fit(Linear(), tmp_path, data, callbacks=[Watcher()], **fp16())
    assert len(seen) == 6


def test_random_states_come_back_as_they_were():
    import random

    import numpy as np

    draws = (random.random, np.random.normal, lambda: torch.rand(3).tolist())
    generators = Generators()
    for _ in range(5):  # odd and even draws of numpy's paired Gaussians
        taken = generators.take()
        first = [draw() for draw in draws]
        RandomStates.from_plain(taken.as_plain()).set()
        assert [draw() for draw in draws] == first


def loop(tmp, spoil_at, *, scaled, told=True, optimizer=torch.optim.SGD):
    """A plain loop under FP16 or FP32, whose batch `spoil_at` holds a NaN."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    steps = optimizer(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    with numwatch.watch(net, steps, scaler=scaler, dir=tmp, summary=False, strict=True) as watch:
        for i in range(6):
            x = torch.randn(8, 4)
            if i == spoil_at:
                x[3, 1] = torch.nan
            if told:
                watch.shadow(lambda copied, x=x: copied(x).float().square().mean(), batch=x)
            with torch.autocast("cpu", torch.float16, enabled=scaled):
                loss = net(x).float().square().mean()
            steps.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(steps)
            scaler.update()
            watch.step(loss=loss)
    return net, origins(numwatch.open_run(tmp))


@pytest.mark.parametrize("scaled", [True, False])
def test_plain_loops_that_tell_how_to_run_a_step(scaled, tmp_path):
    _, (found,) = loop(tmp_path, 3, scaled=scaled)
    assert (found["step"], found["phase"], found["tensor"]) == (3, "data", "batch")
    capsule = load_capsule(tmp_path)
    assert capsule.facts["step"] == 3
    assert capsule.facts["autocast"] == ("float16" if scaled else None)
    assert capsule.state["batch"].isnan().sum() == 1


def test_plain_loops_that_do_not(tmp_path):
    _, (found,) = loop(tmp_path, 3, scaled=True, told=False)
    assert (found["step"], found["phase"]) == (3, "unknown")
    assert "LoopWatch.shadow(loss_of)" in found["note"]


def test_manual_optimization_says_why_not(tmp_path):
    class Manual(Linear):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, _):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    for name, options in (("a", fp16()), ("b", {"precision": "32-true"})):
        _, run = fit(Manual(), tmp_path / name, batches(bad_datum), **options)
        (found,) = origins(run)
        assert (found["step"], found["phase"]) == (3, "unknown")
        assert "automatic_optimization=False" in found["note"]


def test_fused_optimizer_that_skips(tmp_path):
    class Fused(Linear):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

    _, run = fit(Fused(), tmp_path, batches(bad_datum), **fp16())
    (found,) = origins(run)
    assert (found["step"], found["phase"]) == (3, "data")
    assert not load_capsule(tmp_path).notes


def test_gradients_are_read_where_the_loss_tells_nothing(tmp_path):
    _, run = fit(Trap(), tmp_path, batches(), precision="32-true")
    found, *_ = origins(run)
    assert (found["step"], found["phase"]) == (0, "backward")
    assert "square().sum().sqrt()" in found["source"]


def test_window_whose_last_micro_batch_is_clean_says_so(tmp_path):
    class EverySecond(Trap):
        def training_step(self, batch, batch_idx):
            return Linear.loss(self, batch) if batch_idx % 2 else self.loss(batch)

    _, run = fit(EverySecond(), tmp_path, batches(), steps=2, **fp16(), accumulate_grad_batches=2)
    (found,) = origins(run)
    assert (found["step"], found["phase"]) == (0, "none")
    assert found["note"].endswith("of its 2 micro-batches this was the last")


def test_loss_of_each_micro_batch_is_read(tmp_path):
    _, run = fit(
        Linear(), tmp_path, batches(bad_datum, 2), steps=4, **fp16(), accumulate_grad_batches=2
    )
    (found,) = origins(run)
    assert (found["step"], found["phase"]) == (1, "data")


def test_search_can_be_switched_off(tmp_path):
    monitor = numwatch.callbacks.NumericsMonitor(
        origin=False, capsule_gb=0, summary=False, dir=str(tmp_path)
    )
    fit(Linear(), tmp_path, batches(bad_datum), monitor=False, callbacks=[monitor], **fp16())
    assert not origins(numwatch.open_run(tmp_path))
