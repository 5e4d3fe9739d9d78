"""Optimizers that let go of gradients within their step, or that step within backward."""

import gc
import weakref

import pytest
import torch
from torch import nn
from update_runs import (
    Holder,
    backward,
    net,
    run_of,
    unseen,
    update_of,
    updates_watch,
    watched_steps,
)

import numwatch
from numwatch.report.summary import summarize
from numwatch.report.terminal import summary_lines


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


def test_an_optimizer_that_steps_without_step_is_said_not_to_be_seen(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # as LOMO does
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    run = run_of(tmp_path, model, optimizer, backward)
    assert unseen(run) == ["updates and state: SGD took no step that torch tells of"]
    assert not any(run.steps()["skipped"].to_pylist())


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
