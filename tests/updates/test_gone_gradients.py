"""Optimizers that let go of gradients within their step, or that step within backward."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from update_runs import Holder, update_of, updates_watch, watched_steps

import numwatch
from numwatch.report.summary import summarize
from numwatch.report.terminal import summary_lines
from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.watch import Watch


def unhooked(cls):
    """Returns an optimizer's step without the hooks that torch puts around it at its first use."""
    return cls.step.__wrapped__ if hasattr(cls.step, "hooked") else cls.step


def clearing(cls):
    """Returns an optimizer class of the user's own that frees each gradient once it is used."""

    class Clearing(cls):
        def step(self, closure=None):
            loss = closure() if closure is not None else None
            unhooked(cls)(self)
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return loss

    return Clearing


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


def run_of(tmp_path, model, optimizer, step, steps=3, **settings):
    """Watches some steps; returns the run."""
    x = torch.randn(32, 8)
    with numwatch.watch(
        model, optimizer, dir=tmp_path, summary=False, strict=True, every_n_steps=1, **settings
    ) as watch:
        for _ in range(steps):
            loss = step(model, x)
            watch.step(loss=loss)
    return numwatch.open_run(tmp_path)


def backward(model, x):
    loss = model(x).square().mean()
    loss.backward()
    return loss


def torch_s_hooks():
    """The hooks on the steps of all optimizers."""
    pre, post = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    return set(pre), set(post)


def unseen(run):
    return [event["note"] for event in run.events() if event["kind"] == "unseen"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_updates_and_state_are_those_of_an_optimizer_that_keeps_its_gradients(cls, dtype):
    given = [torch.randn(40).to(dtype) for _ in range(3)]
    w = torch.randn(40).to(dtype)
    keeping, letting_go = Holder(w.clone()), Holder(w.clone())
    expected = watched_steps(
        keeping, cls(keeping.parameters(), lr=1e-2), [[g.clone()] for g in given]
    )
    optimizer = clearing(cls)(letting_go.parameters(), lr=1e-2)
    found = watched_steps(letting_go, optimizer, [[g.clone()] for g in given])
    assert torch.equal(keeping.inner.w, letting_go.inner.w)
    for own, other in zip(found, expected, strict=True):
        assert own.scalars.grad_norm == other.scalars.grad_norm
        assert list(own.states) == list(other.states)
        update, meant = update_of(own, "bf16"), update_of(other, "bf16")
        if dtype is torch.float32:
            assert update == meant
        else:  # the user's own code is not run again: the gradients tell what moved
            assert (update.intended, update.nonzero) == ("estimate", 40)
            assert update.applied_sq == meant.applied_sq


def test_a_gradient_that_is_there_alone_counts_as_one_to_step_by():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    model = Pair()
    optimizer = clearing(torch.optim.SGD)(model.parameters(), lr=0.1)
    watch = updates_watch(model, optimizer, None)
    watch.begin(0)
    model.used(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    watch.detach()
    assert {update.slot for update in snapshot.updates} == {
        "used.weight:update",
        "used.bias:update",
    }


def test_gradients_are_not_held_beyond_the_optimizer_that_lets_go_of_them():
    holder = Holder(torch.randn(40))
    alive = []

    class Looking(torch.optim.SGD):
        def step(self, closure=None):
            gradient = weakref.ref(holder.inner.w.grad)
            unhooked(torch.optim.SGD)(self)
            holder.inner.w.grad = None
            gc.collect()
            alive.append(gradient() is not None)

    optimizer = Looking(holder.parameters(), lr=0.1)
    watch = updates_watch(holder, optimizer, None)
    watch.begin(0)
    holder.inner.w.square().sum().backward()
    optimizer.step()
    watch.end()
    watch.detach()
    assert alive == [False]


def test_of_torch_s_own_nothing_is_kept_until_one_was_seen_to_let_go(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.register_step_post_hook(lambda own, *_: own.zero_grad())

    def step(model, x):
        loss = backward(model, x)
        optimizer.step()
        return loss

    run = run_of(tmp_path, model, optimizer, step)
    assert set(run.updates()["step"].to_pylist()) == {1, 2}
    assert set(run.states()["step"].to_pylist()) == {1, 2}
    assert unseen(run) == [
        "updates and state: no gradients were left when a step of AdamW was over"
    ]
    lines = [line.plain for line in summary_lines(summarize(run), 100)]
    assert f"not seen    {unseen(run)[0]}" in lines


@pytest.mark.parametrize("given", ["none", "each", "a dummy"])
def test_optimizers_within_backward_are_found(tmp_path, given):
    before = torch_s_hooks()
    model = net()
    by_parameter = {p: torch.optim.AdamW([p], foreach=False) for p in model.parameters()}

    def step_at_once(parameter):
        by_parameter[parameter].step()
        by_parameter[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_at_once)
    # The last is what transformers hands out where an optimizer works layer by layer.
    optimizers = {
        "none": None,
        "each": list(by_parameter.values()),
        "a dummy": torch.optim.SGD([torch.zeros(1, 1)], lr=1e-3),
    }

    def step(model, x):
        loss = backward(model, x)
        if given == "a dummy":
            optimizers[given].step()
        return loss

    run = run_of(tmp_path, model, optimizers[given], step)
    names = {f"{name}:update" for name, _ in model.named_parameters()}
    updates = run.updates().to_pylist()
    for step in range(3):
        assert {line["slot"] for line in updates if line["step"] == step} == names
    assert len({(line["step"], line["slot"], line["storage"]) for line in updates}) == len(updates)
    assert run.states().num_rows == 3 * 4 * 2
    assert None not in run.steps()["grad_norm"].to_pylist()
    assert not any(run.steps()["skipped"].to_pylist())
    assert unseen(run) == []
    assert torch_s_hooks() == before


@pytest.mark.parametrize("every", [1, 10])
def test_that_weights_have_moved_is_known_on_every_step(every):
    model = net()
    watch = Watch(model, Gate(strict=True), Schedule(every, 0))
    watch.attach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        watch.begin(step)
        backward(model, torch.ones(2, 8))
        assert not watch.stepped
        optimizer.step()
        assert watch.stepped
        watch.end()
    watch.detach()


def test_an_optimizer_inside_another_is_no_further_one(tmp_path):
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    class Outer(torch.optim.Optimizer):
        def __init__(self):
            super().__init__(list(model.parameters()), {})

        def step(self, closure=None):
            inner.step()

    outer = Outer()

    def step(model, x):
        loss = backward(model, x)
        outer.step()
        return loss

    updates = run_of(tmp_path, model, outer, step, steps=1).updates().to_pylist()
    assert updates
    assert len({(line["slot"], line["storage"]) for line in updates}) == len(updates)


def test_optimizers_of_other_models_are_nobody_s(tmp_path):
    model, other = net(), net()
    own, foreign = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, other))

    def step(model, x):
        backward(other, x)
        foreign.step()
        loss = backward(model, x)
        own.step()
        return loss

    run = run_of(tmp_path, model, own, step, steps=1)
    assert {line["slot"] for line in run.updates().to_pylist()} == {
        f"{name}:update" for name, _ in model.named_parameters()
    }


def test_what_steps_without_an_optimizer_is_said_not_to_be_seen(tmp_path):
    def step(model, x):
        loss = backward(model, x)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
        return loss

    run = run_of(tmp_path, net(), None, step)
    assert run.updates().num_rows == 0
    assert unseen(run) == [
        "updates, state and gradient norm: no optimizer was given or found by its steps"
    ]


def test_an_optimizer_that_steps_without_step_is_said_not_to_be_seen(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # as LOMO does
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    run = run_of(tmp_path, model, optimizer, backward)
    assert unseen(run) == ["updates and state: SGD took no step that torch tells of"]


def test_of_what_a_closure_makes_and_the_step_lets_go_of_nothing_is_guessed(tmp_path):
    model = net()
    optimizer = clearing(torch.optim.SGD)(model.parameters(), lr=0.1)

    def step(model, x):
        return optimizer.step(lambda: backward(model, x))

    run = run_of(tmp_path, model, optimizer, step)
    assert run.updates().num_rows == 0
    assert unseen(run) == [
        "updates and state: no gradients were left when a step of Clearing was over"
    ]


def test_nothing_is_said_where_no_updates_are_wanted(tmp_path):
    run = run_of(tmp_path, net(), None, backward, update_samples=0)
    assert unseen(run) == []


def test_a_watch_that_nobody_ended_is_not_kept_alive_by_torch_s_hooks():
    watch = updates_watch(net(), None)
    dead = weakref.ref(watch)
    del watch
    gc.collect()
    assert dead() is None
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    torch.optim.SGD([parameter], lr=1.0).step()  # the hooks that are left do nothing
    assert parameter.item() == 0.0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_under_lightning_gradients_are_seen_within_the_closure(tmp_path, precision):
    import pytorch_lightning as pl

    from numwatch.callbacks import NumericsMonitor

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return clearing(torch.optim.AdamW)(self.parameters(), lr=1e-3)

    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(32, 8)), batch_size=8
    )
    trainer = pl.Trainer(
        max_epochs=1,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[NumericsMonitor(every_n_steps=1, dir=tmp_path, strict=True)],
    )
    trainer.fit(Module(), data)
    run = numwatch.open_run(tmp_path)
    assert {line["step"] for line in run.updates().to_pylist()} == set(range(4))
    assert unseen(run) == []
