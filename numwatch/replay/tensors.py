"""A replay under recipes that give a whole tensor one scale."""

from __future__ import annotations

import numpy as np

from numwatch.formats import Format
from numwatch.recipes.scaling import DelayedScaling
from numwatch.recipes.spec import TensorRecipe
from numwatch.replay.columns import Bools, Doubles
from numwatch.replay.figures import Reach, SlotReplay
from numwatch.replay.history import SlotHistory
from numwatch.stats.cuts_of_rows import shares_at_most

ROUNDING = 1 + 2.0**-22
"""Scales are FP32: an amax scaled by its own scale lands up to two roundings above the largest."""


def replay_tensor(history: SlotHistory, recipe: TensorRecipe, fmt: Format) -> SlotReplay:
    """Returns what a recipe would have done to one slot, see `replay`."""
    scale = recipe.over(history.cast_amax, fmt, history.run).astype(np.float64)
    if not isinstance(recipe, DelayedScaling):
        return cast_slot(history, fmt, scale, fmt.max * ROUNDING)
    usable = (history.cast_amax > 0) & np.isfinite(history.cast_amax)
    # Rows without one before them: their scale is the rule's 1, or of amaxes that nobody saw.
    start: Bools = np.cumsum(usable) == usable
    seen, held = (count[~start] for count in recipe.coverage(history.cast_amax, history.run))
    reach = Reach(
        seen=int(seen.sum()),
        held=int(held.sum()),
        blind=int((seen == 0).sum()),
        merged=history.merged,
    )
    return cast_slot(history, fmt, scale, fmt.max * ROUNDING, start=start, reach=reach)


def cast_slot(
    history: SlotHistory,
    fmt: Format,
    scale: Doubles,
    limit: float,
    *,
    start: Bools | None = None,
    reach: Reach | None = None,
    rounded: bool = False,
) -> SlotReplay:
    """Returns what casting a slot's tensors at given scales would have done.

    Args:
        history: The slot.
        fmt: The format cast to.
        scale: Float64 [n], one a row, for the tensor without its loss scale.
        limit: Scaled magnitudes above it saturate.
        start: Bool [n], rows that no amax precedes; None for none.
        reach: What the scales rest on; None where on nothing unseen.
        rounded: Whether the tensors were in `fmt` before they were seen: elements that it had
            flushed are among their zeros, so above the scale they were seen at these may be too.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        peak = history.amax * scale
        saturates = (peak > limit) | np.isinf(history.cast_amax)
        wasted = np.where(peak > 0, np.maximum(np.log2(fmt.max / peak), 0.0), np.nan)
        full, rows = history.full, history.rows
        own = scale[full] / rows.loss_scale
    lost = shares_at_most(rows, fmt.flush_threshold, own)
    elements = rows.elements
    if rounded:
        hidden = np.where(own != 1.0, rows.zeros, 0)
        high = lost[:, 2] * elements + hidden
        lost[:, 2] = np.maximum(high / np.maximum(elements + hidden, 1), lost[:, 2])
    clipped = 1.0 - shares_at_most(rows, limit, own)[:, [0, 2, 1]]
    clipped[elements == 0] = 0.0
    return SlotReplay(
        slot=history.slot,
        format=fmt.name,
        step=history.step,
        scale=scale,
        start=np.zeros(len(history), np.bool_) if start is None else start,
        saturates=saturates,
        full=full,
        saturated_shares=clipped,
        flushed_shares=lost,
        counts=elements,
        wasted=wasted,
        reach=reach,
    )
