"""The scalars of steps over ranks, and on which of them the ranks disagree."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from numwatch.ranks.table import Array, Table, known, largest
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.stats.layout import NANS, NEGINFS, POSINFS, SUMSQ

_LOSSES, _LOSS, _NORMS, _NORM_SQUARED = range(4)
_SUMS = _NORM_SQUARED + 1
_AGREED = ("loss_scale_before", "loss_scale_after", "skipped")
"""What must be the same on all ranks: its largest, and the largest of its negative."""
_LARGEST = ("found_inf", "step_seconds", "numwatch_seconds")


def steps_table(snapshots: Sequence[Snapshot]) -> Table:
    """Packs the scalars of steps, which are the same on every rank."""
    sums = np.zeros((len(snapshots), _SUMS))
    maxima = np.empty((len(snapshots), 2 * len(_AGREED) + len(_LARGEST)))
    for i, snapshot in enumerate(snapshots):
        scalars = snapshot.scalars
        if scalars.loss is not None:
            sums[i, [_LOSSES, _LOSS]] = 1, scalars.loss
        if scalars.grad_norm is not None:
            sums[i, [_NORMS, _NORM_SQUARED]] = 1, scalars.grad_norm * scalars.grad_norm
        agreed = [largest(getattr(scalars, name)) for name in _AGREED]
        more = [largest(getattr(scalars, name)) for name in _LARGEST]
        maxima[i] = [*agreed, *(-value for value in agreed), *more]
    return Table(tuple(str(i) for i in range(len(snapshots))), sums, maxima)


def joined_scalars(
    own: StepScalars, sums: Array, maxima: Array
) -> tuple[StepScalars, tuple[str, ...]]:
    """Returns a step's scalars over all ranks, and the names of those the ranks differ in.

    The loss is the mean over ranks, as DDP takes its gradient. `own` fills in what every rank
    knows by itself, such as the learning rate.
    """
    n = len(_AGREED)
    differing = tuple(name for i, name in enumerate(_AGREED) if maxima[i] != -maxima[n + i])
    before, after, skipped, *_ = maxima
    found_inf, step_seconds, numwatch_seconds = maxima[2 * n :]
    joined = replace(
        own,
        loss=float(sums[_LOSS] / sums[_LOSSES]) if sums[_LOSSES] else None,
        grad_norm=math.sqrt(sums[_NORM_SQUARED]) if sums[_NORMS] else None,
        loss_scale_before=_or(known(before), own.loss_scale_before),
        loss_scale_after=_or(known(after), own.loss_scale_after),
        found_inf=bool(found_inf > 0),
        skipped=bool(skipped > 0),
        step_seconds=float(step_seconds),
        numwatch_seconds=float(numwatch_seconds),
    )
    return joined, differing


def with_norm_elsewhere(snapshot: Snapshot, elsewhere: Collection[str]) -> Snapshot:
    """Returns a step whose gradient norm is of the gradients too that rank 0 has not.

    Each rank answers for the norm of its shards and rank 0 for that of what it holds whole. Amax
    rows hold no sums: the norm of such a step is not known.

    Args:
        snapshot: The joined step; its rows are there.
        elsewhere: The slots of those gradients; see `agreement.Agreement`.
    """
    rows, norm = snapshot.rows, snapshot.scalars.grad_norm
    if rows is None or norm is None or not elsewhere:
        return snapshot
    theirs = [i for i, slot in enumerate(rows.slots) if slot in elsewhere]
    if not theirs:
        return snapshot
    if not rows.full:
        return replace(snapshot, scalars=replace(snapshot.scalars, grad_norm=None))
    counts, squares = rows.counts[theirs], rows.reals[theirs, SUMSQ] / rows.loss_scales[theirs] ** 2
    more = float(squares.sum())
    if counts[:, NANS].any():
        more = math.nan
    elif counts[:, [POSINFS, NEGINFS]].any():
        more = math.inf
    whole = math.sqrt(norm * norm + more)
    return replace(snapshot, scalars=replace(snapshot.scalars, grad_norm=whole))


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
