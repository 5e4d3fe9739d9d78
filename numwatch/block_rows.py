"""The block counts of a step: of each GEMM operand, for each block size and direction."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numwatch.stats import BlockHistogram, unpack_block_row
from numwatch.stats.block_layout import BLOCK_KINDS

OPERANDS = ("input", "weight", "grad_output")
"""Roles of what a GEMM multiplies, forward and backward.

Along the last dimension fprop reduces over `input` and `weight` and dgrad over `grad_output`;
across it, wgrad over `input` and `grad_output` and dgrad over `weight`.
"""


@dataclass(frozen=True)
class BlockRow:
    """The blocks of one operand in one step.

    Attributes:
        slot: Name of the slot.
        loss_scale: What its numbers are multiplied by, 1 for forward roles.
        histogram: One block size and direction.
    """

    slot: str
    loss_scale: float
    histogram: BlockHistogram


@dataclass(frozen=True, eq=False)
class BlockRows:
    """The blocks of all operands in a step, packed as the kernels left them.

    Attributes:
        slots: Names of the operands seen, n of them.
        counts: int64 [n, BLOCK_ROWS, BLOCK_COLUMNS], see `stats.block_layout`.
        loss_scales: float64 [n].
    """

    slots: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    loss_scales: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.slots) * len(BLOCK_KINDS)

    def __iter__(self) -> Iterator[BlockRow]:
        for slot, rows, loss_scale in zip(self.slots, self.counts, self.loss_scales, strict=True):
            for row, kind in zip(rows, BLOCK_KINDS, strict=True):
                yield BlockRow(slot, float(loss_scale), unpack_block_row(row, *kind))
