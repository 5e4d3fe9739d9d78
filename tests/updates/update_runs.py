"""Small real steps under a Watch, and what its snapshots say of them."""

from torch import nn

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
