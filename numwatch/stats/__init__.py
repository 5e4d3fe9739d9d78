"""What one tensor looks like: one pass gives one row; what derives from a row is pure functions."""

from typing import TYPE_CHECKING

from numwatch.on_demand import on_demand
from numwatch.stats.block_layout import unpack_block_row
from numwatch.stats.blocks import BlockCounts, BlockHistogram
from numwatch.stats.bounded import Bounded
from numwatch.stats.estimate import estimate_flushed
from numwatch.stats.layout import (
    AMAX,
    AMIN,
    BINADES,
    CALLS,
    COUNTS,
    NANS,
    NEGINFS,
    NUMEL,
    POSINFS,
    POW2S,
    REALS,
    SUM,
    SUMSQ,
    ZEROS,
    pack_row,
    unpack_row,
)
from numwatch.stats.tensor_stats import TensorStats

if TYPE_CHECKING:
    from numwatch.stats.block_kernel import accumulate_blocks
    from numwatch.stats.dtypes import WATCHED_DTYPES, is_watched_dtype
    from numwatch.stats.kernels import (
        accumulate,
        accumulate_amax,
        accumulate_gated,
        accumulate_group,
        accumulate_rows,
        row_writer,
        tensor_stats,
        warm_up,
    )
    from numwatch.stats.prepare import NotWatchedError
    from numwatch.stats.rows import merge_rows, new_block_rows, new_rows, reset_rows

__all__ = [
    "AMAX",
    "AMIN",
    "BINADES",
    "CALLS",
    "COUNTS",
    "NANS",
    "NEGINFS",
    "NUMEL",
    "POSINFS",
    "POW2S",
    "REALS",
    "SUM",
    "SUMSQ",
    "WATCHED_DTYPES",
    "ZEROS",
    "BlockCounts",
    "BlockHistogram",
    "Bounded",
    "NotWatchedError",
    "TensorStats",
    "accumulate",
    "accumulate_amax",
    "accumulate_blocks",
    "accumulate_gated",
    "accumulate_group",
    "accumulate_rows",
    "estimate_flushed",
    "is_watched_dtype",
    "merge_rows",
    "new_block_rows",
    "new_rows",
    "pack_row",
    "reset_rows",
    "row_writer",
    "tensor_stats",
    "unpack_block_row",
    "unpack_row",
    "warm_up",
]

# The pass over a tensor needs torch; what its rows say does not.
on_demand(
    __name__,
    {
        "numwatch.stats.block_kernel": ("accumulate_blocks",),
        "numwatch.stats.dtypes": ("WATCHED_DTYPES", "is_watched_dtype"),
        "numwatch.stats.kernels": (
            "accumulate",
            "accumulate_amax",
            "accumulate_gated",
            "accumulate_group",
            "accumulate_rows",
            "row_writer",
            "tensor_stats",
            "warm_up",
        ),
        "numwatch.stats.prepare": ("NotWatchedError",),
        "numwatch.stats.rows": ("merge_rows", "new_block_rows", "new_rows", "reset_rows"),
    },
)
