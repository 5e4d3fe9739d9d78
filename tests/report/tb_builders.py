"""Snapshots for the tests of what a step looks like in a logger."""

import math

import numpy as np

from numwatch.snapshot import GRADIENT_ROLES, SlotInfo, Snapshot, StepScalars
from numwatch.stats import TensorStats
from numwatch.stats.layout import pack_row
from numwatch.tensor_rows import Cast, Rows


def powers(counts, *, zeros=0, nans=0, posinfs=0):
    """Statistics of a tensor holding counts[e] elements of magnitude 1.5 * 2^e each."""
    counts = {e: n for e, n in counts.items() if n}
    first, last = min(counts, default=0), max(counts, default=-1)
    binades = tuple(counts.get(e, 0) for e in range(first, last + 1))
    nonzeros = sum(binades)
    return TensorStats(
        numel=nonzeros + zeros + nans + posinfs,
        zeros=zeros,
        nans=nans,
        posinfs=posinfs,
        neginfs=0,
        pow2s=0,
        amax=1.5 * 2.0**last if counts else 0.0,
        amin=1.5 * 2.0**first if counts else math.inf,
        sum=sum(n * 1.5 * 2.0**e for e, n in counts.items()),
        sumsq=sum(n * 2.25 * 4.0**e for e, n in counts.items()),
        binade_first=first,
        binades=binades,
    )


def rows_of(stats, *, loss_scale=1.0, casts=None, full=True):
    """Rows of slot → statistics; gradient roles carry the loss scale."""
    packed = [pack_row(s) for s in stats.values()]
    scales = [loss_scale if s.rpartition(":")[2] in GRADIENT_ROLES else 1.0 for s in stats]
    return Rows(
        slots=tuple(stats),
        counts=np.stack([counts for counts, _ in packed]),
        reals=np.stack([reals for _, reals in packed]),
        loss_scales=np.array(scales),
        casts=tuple((casts or {}).get(s) for s in stats),
        full=full,
    )


def infos(slots, fmt="fp16", dtype="float32"):
    """The slot table: what each slot computes in and what its tensors are stored in."""
    table = {}
    for order, slot in enumerate(slots):
        module, _, role = slot.rpartition(":")
        table[slot] = SlotInfo(slot, module, role, "Linear", (4, 4), dtype, fmt, order)
    return table


def snapshot(step, stats=None, *, loss_scale=1.0, casts=None, full=True, **scalars):
    """A step with the rows of slot → statistics, or without rows."""
    rows = None
    if stats is not None:
        rows = rows_of(stats, loss_scale=loss_scale, casts=casts, full=full)
    scalars = {"loss_scale_before": loss_scale, "loss_scale_after": loss_scale, **scalars}
    return Snapshot(step, StepScalars(**scalars), rows)


def cast(flushed, saturated, *, scale, fmt="e4m3"):
    """What a library's cast did."""
    return Cast(fmt, scale, flushed, saturated)
