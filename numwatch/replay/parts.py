"""A replay under recipes that scale parts of a tensor: from the block counts, where taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from numwatch.formats import BlockFormat, Format, get_block_format
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling
from numwatch.recipes.spec import AnyRecipe
from numwatch.recommend.block_rows import Blocks, read_blocks
from numwatch.recommend.parts import part_shares
from numwatch.record import Run
from numwatch.replay.figures import SlotReplay
from numwatch.replay.history import FullRows, History, SlotHistory
from numwatch.snapshot import role_of
from numwatch.stats import TensorStats

WITHOUT_BLOCKS = 32
"""Rows of a slot looked at where none has block counts: each is judged by itself, in milliseconds.
"""


def replay_parts(
    run: Run, history: History, recipe: AnyRecipe, format_of: Callable[[SlotHistory], Format]
) -> tuple[list[SlotReplay], int]:
    """Returns what a recipe of parts would have done, and from how many rows' block counts.

    Where a slot has block counts on some steps, the others tell nothing; where it has none at all,
    `WITHOUT_BLOCKS` of its full rows, evenly spread, give wide bounds.

    Args:
        run: The run.
        history: Its operands.
        recipe: `rowwise`, `block`, `mx` or `nvfp4`.
        format_of: The element format of a slot.
    """
    blocks = read_blocks(run)
    found = [_replay_slot(one, recipe, format_of(one), blocks) for one in history]
    own = set(history.slots)
    return found, sum(slot in own for slot, _ in blocks)


def _replay_slot(
    history: SlotHistory,
    recipe: AnyRecipe,
    element: Format,
    blocks: dict[tuple[str, int], Blocks],
) -> SlotReplay:
    fmt = _format(recipe, element, role_of(history.slot))
    counted = [blocks.get((history.slot, step), {}) for step in history.step.tolist()]
    places = np.flatnonzero(history.full)
    told = [row for row, at in enumerate(places.tolist()) if counted[at]]
    rows = told or list(range(0, len(places), -(-len(places) // WITHOUT_BLOCKS) or 1))
    flushed, saturated = np.zeros((len(rows), 3)), np.zeros((len(rows), 3))
    elements = np.zeros(len(rows), np.int64)
    for i, row in enumerate(rows):
        own, stats = counted[places[row]], stats_of(history.rows, row)
        lost, clipped = part_shares(stats, fmt, recipe, own, "last")  # type: ignore[arg-type]
        flushed[i] = lost.value, lost.low, lost.high
        saturated[i] = clipped.value, clipped.low, clipped.high
        elements[i] = stats.nonzeros
    n = len(history)
    full, saturates = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    full[places[rows]], saturates[places[rows]] = True, saturated[:, 1] > 0
    return SlotReplay(
        slot=history.slot,
        format=fmt.name,
        step=history.step,
        scale=np.full(n, np.nan),
        start=np.zeros(n, np.bool_),
        saturates=saturates,
        full=full,
        saturated_shares=saturated,
        flushed_shares=flushed,
        counts=elements,
        wasted=np.full(n, np.nan),
    )


def _format(recipe: AnyRecipe, element: Format, role: str) -> Format | BlockFormat:
    if isinstance(recipe, MXScaling):
        kind = "mxint8" if element.is_integer else f"mxfp{element.bits}-{element.name}"
        return get_block_format(kind)
    if isinstance(recipe, NVFP4Scaling):
        return get_block_format("nvfp4")
    if isinstance(recipe, BlockScaling):
        return get_block_format(f"block-fp8-{'128x128' if role == 'weight' else '1x128'}")
    return element


def stats_of(rows: FullRows, row: int) -> TensorStats:
    """Returns one histogram as the statistics that predictions take."""
    counts = rows.counts[rows.ends[row] : rows.ends[row + 1]]
    total = int(counts.sum())
    return TensorStats(
        numel=total,
        zeros=0,
        nans=0,
        posinfs=0,
        neginfs=0,
        pow2s=int(rows.pow2s[row]),
        amax=float(rows.amax[row]),
        amin=float(rows.amin[row]),
        sum=0.0,
        sumsq=0.0,
        binade_first=int(rows.first[row]),
        binades=tuple(counts.tolist()),
    )
