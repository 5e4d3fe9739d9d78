"""Small real steps under a Watch, and what its snapshots say of them."""

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

import numwatch
from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.watch import Watch


def updates_watch(model, *optimizers_and_scaler, include=("*:update",), **settings):
    """Returns a watch of every step's updates alone."""
    *optimizers, scaler = optimizers_and_scaler
    watch = Watch(model, Gate(strict=True), Schedule(1, 0), include=include, **settings)
    watch.attach(optimizers, scaler)
    return watch


def watched_steps(model, optimizer, gradients, scaler=None, **settings):
    """Steps once per list of gradients, in order of the parameters; returns the snapshots."""
    watch = updates_watch(model, optimizer, scaler, **settings)
    snapshots = []
    for step, of_step in enumerate(gradients):
        watch.begin(step)
        for parameter, gradient in zip(model.parameters(), of_step, strict=True):
            parameter.grad = gradient
        optimizer.step()
        watch.end()
        snapshots += watch.collect(everything=True)
    watch.detach()
    return snapshots


class Holder(nn.Module):
    """A module with one parameter `w`."""

    def __init__(self, w):
        super().__init__()
        self.inner = nn.Module()
        self.inner.w = nn.Parameter(w)


def update_of(snapshot, storage, slot="inner.w:update"):
    """Returns one update."""
    return next(u for u in snapshot.updates if (u.slot, u.storage) == (slot, storage))


def state_of(snapshot, key, parameter="inner.w"):
    """Returns what is known of one tensor of state."""
    return next(s for s in snapshot.states if s.slot == f"{parameter}:{key}")


def row_of(snapshot, slot):
    """Returns a row's statistics."""
    return next(row.stats for row in snapshot.rows if row.slot == slot)


def net():
    """A small model."""
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
    """Makes gradients; returns the loss."""
    loss = model(x).square().mean()
    loss.backward()
    return loss


def unseen(run):
    """What the record says that it does not hold."""
    return [event["note"] for event in run.events() if event["kind"] == "unseen"]


def torch_s_hooks():
    """The hooks on the steps of all optimizers."""
    pre, post = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    return set(pre), set(post)
