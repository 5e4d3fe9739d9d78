"""Block counts over ranks: they add up."""

import numpy as np

from numwatch.block_rows import BlockRows
from numwatch.ranks.table import Table
from numwatch.stats.block_layout import BLOCK_COLUMNS, BLOCK_KINDS

_SEEN = 0


def blocks_table(blocks: BlockRows) -> Table:
    """Packs the block counts one rank saw."""
    n = len(blocks.slots)
    counts = blocks.counts.reshape(n, -1).astype(np.float64)
    sums = np.concatenate([np.ones((n, 1)), counts], axis=1)
    return Table(blocks.slots, sums, blocks.loss_scales.reshape(n, 1).astype(np.float64))


def no_blocks() -> Table:
    """Returns what a rank packs that saw none."""
    width = len(BLOCK_KINDS) * BLOCK_COLUMNS
    return Table((), np.empty((0, 1 + width)), np.empty((0, 1)))


def joined_blocks(joined: Table) -> BlockRows | None:
    """Returns the block counts of all ranks; None where there are none."""
    seen = np.flatnonzero(joined.sums[:, _SEEN])
    if not len(seen):
        return None
    return BlockRows(
        slots=tuple(joined.keys[i] for i in seen.tolist()),
        counts=joined.sums[seen, 1:]
        .astype(np.int64)
        .reshape(len(seen), len(BLOCK_KINDS), BLOCK_COLUMNS),
        loss_scales=joined.maxima[seen, 0].copy(),
    )
