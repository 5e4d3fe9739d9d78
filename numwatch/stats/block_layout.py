"""The packed row of block counts: where each count of one block size and direction stands.

A row is int64 [BLOCK_COLUMNS] of counts alone, so rows of calls, micro-batches and ranks add up in
any order. A tensor has `BLOCK_ROWS` of them, see `BLOCK_KINDS`.
"""

import numpy as np
import numpy.typing as npt

from numwatch.stats.binades import BINADE_MIN
from numwatch.stats.blocks import BlockHistogram
from numwatch.stats.layout import BINADES

BLOCK_SIZES = (16, 32)
DIRECTIONS = ("last", "across")
"""Along the last dimension, or along the rows that all other dimensions make together."""
BLOCK_KINDS = tuple((size, direction) for direction in DIRECTIONS for size in BLOCK_SIZES)
"""Size and direction of each row of a tensor."""
BLOCK_ROWS = len(BLOCK_KINDS)

CLASSES = 5
"""Classes of mantissas, by how many of 1, 1.5, 1.75 and 1.875 they exceed."""
TOPS = CLASSES - 1
"""Cells [0, TOPS) of a class: elements in the binade of their block's amax, by their own class."""
DEPTH_MAX = 41
"""Cells from TOPS on: elements 1, 2, ... DEPTH_MAX binades below; the last holds what is deeper.

FP16, the format of most binades that could be a block's element, flushes from 41 on.
"""
CELLS = TOPS + DEPTH_MAX

BELOW = CLASSES * CELLS
"""Columns [0, BELOW): a cell for each class of the block's amax."""
NEAR, EDGE, DEEP, ZERO_BLOCKS = range(BELOW, BELOW + 4)
PEAKS = ZERO_BLOCKS + 1
"""Columns [PEAKS, AMAXES): blocks by the class of their amax."""
AMAXES = PEAKS + CLASSES
"""Columns [AMAXES, ELEMENTS): blocks by the binade of their amax, from BINADE_MIN on."""
ELEMENTS = AMAXES + BINADES
"""Columns [ELEMENTS, BLOCK_COLUMNS): the elements in blocks of each class, by that binade."""
BLOCK_COLUMNS = ELEMENTS + CLASSES * BINADES

SCALE_STEP = 17 / 16
"""How far rounding a scale to E4M3 takes it down at most: from 1 + 1/16 to 1, the tie."""
SCALE_STEP_UP = 18 / 17
"""How far up, from just above it to 1 + 1/8."""
SLACK = 1 + 1e-6
"""What the rounding of scales to FP32, and of products with them, may add."""
FLUSHED_FROM = 24.0
"""amax / |x| from which on E2M1 is flushed where its largest value, 6, stands at the amax."""
DEEP_RATIO = FLUSHED_FROM * SCALE_STEP * SLACK
"""DEEP counts the elements with |x| <= amax / this, which NVFP4 flushes under any normal scale."""
EDGE_RATIO = FLUSHED_FROM / SCALE_STEP_UP / SLACK
"""EDGE counts those with |x| <= amax / this, which some scale flushes."""
NEAR_RATIO = SCALE_STEP * SLACK
"""NEAR counts those with |x| > amax / this, which some scale saturates."""

BlockRow = npt.NDArray[np.int64]


def unpack_block_row(row: BlockRow, size: int, direction: str) -> BlockHistogram:
    """Returns what one row [BLOCK_COLUMNS] says."""
    cells = row[:BELOW].reshape(CLASSES, CELLS)
    amaxes = row[AMAXES:ELEMENTS]
    elements = row[ELEMENTS:].reshape(CLASSES, BINADES)
    filled = np.flatnonzero(amaxes)
    first, end = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (-BINADE_MIN, 0)
    return BlockHistogram(
        size=size,
        direction=direction,
        blocks=int(amaxes.sum()),
        zero_blocks=int(row[ZERO_BLOCKS]),
        below=tuple(_depths(own) for own in cells),
        tops=tuple(tuple(own[:TOPS].tolist()) for own in cells),
        amax_first=first + BINADE_MIN,
        amaxes=tuple(amaxes[first:end].tolist()),
        peaks=tuple(row[PEAKS:AMAXES].tolist()),
        elements=tuple(tuple(own[first:end].tolist()) for own in elements),
        near=int(row[NEAR]),
        edge=int(row[EDGE]),
        deep=int(row[DEEP]),
    )


def _depths(cells: BlockRow) -> tuple[int, ...]:
    depths = np.concatenate([cells[:TOPS].sum(keepdims=True), cells[TOPS:]])
    filled = np.flatnonzero(depths)
    return tuple(depths[: filled[-1] + 1 if len(filled) else 0].tolist())
