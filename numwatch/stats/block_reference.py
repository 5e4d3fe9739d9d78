"""The readable counting of blocks: plain torch operations, any device, no synchronisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.block_layout import (
    AMAXES,
    BELOW,
    CELLS,
    DEEP,
    DEEP_RATIO,
    DEPTH_MAX,
    EDGE,
    EDGE_RATIO,
    ELEMENTS,
    NEAR,
    NEAR_RATIO,
    PEAKS,
    TOPS,
    ZERO_BLOCKS,
)
from numwatch.stats.block_pieces import matrices
from numwatch.stats.layout import BINADES
from numwatch.stats.widen import widened

_MAGNITUDE = 0x7FFF_FFFF_FFFF_FFFF
_INF = 0x7FF0_0000_0000_0000
_MANTISSA = 0x000F_FFFF_FFFF_FFFF
_MANTISSA_BITS = 52
_EIGHTH = 1 << (_MANTISSA_BITS - 3)

# What lies outside the range of binades goes to its ends, whatever its mantissa.
_NORMAL = (1023 + BINADE_MIN + 1) << _MANTISSA_BITS
_SMALLEST = ((1023 + BINADE_MIN) << _MANTISSA_BITS) + 1
_LARGEST = ((1023 + BINADE_MAX + 1) << _MANTISSA_BITS) - 1

_ELEMENTS_AT_ONCE = 1 << 22
"""A few FP64 and int64 copies of so many elements are made at a time."""


def accumulate_blocks(x: Tensor, rows: Tensor, kinds: Sequence[tuple[int, str]]) -> None:
    """Adds the blocks of x to rows int64 [k, BLOCK_COLUMNS] on x's device; see `BlockHistogram`.

    Args:
        x: Any tensor of a watched dtype; of a DTensor the local shard is taken.
        rows: Where the counts go.
        kinds: Block size and direction of each row.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    height = math.lcm(*(size for size, direction in kinds if direction == "across"))
    for whole, times in matrices(x, height):
        own = rows if times == 1 else torch.zeros_like(rows)
        for part in whole.split(height * max(1, _ELEMENTS_AT_ONCE // (height * whole.shape[1]))):
            magnitude = widened(part).view(torch.int64) & _MAGNITUDE
            magnitude = magnitude.where(magnitude < _INF, 0)
            for row, (size, direction) in zip(own, kinds, strict=True):
                _add(magnitude if direction == "last" else magnitude.T, size, row)
        if times > 1:
            rows += own * times


def _add(magnitude: Tensor, size: int, row: Tensor) -> None:
    """Adds the blocks along the last dimension of FP64 magnitude patterns [R, C]."""
    ragged = -magnitude.shape[1] % size
    blocks = torch.nn.functional.pad(magnitude, (0, ragged)).reshape(-1, size)
    amax = blocks.amax(dim=1, keepdim=True)
    counted, filled = blocks > 0, (amax > 0).flatten()

    top, own = _within(amax), _within(blocks)
    binade = (top >> _MANTISSA_BITS) - 1023
    # One less is in the binade below where it was a power of two.
    depth = (binade - (((own - 1) >> _MANTISSA_BITS) - 1023)).clamp(max=DEPTH_MAX)
    cell = torch.where(depth == 0, _class_of(own), depth + TOPS) - 1
    own_class = _class_of(top)
    index = own_class * CELLS + cell
    row[:BELOW].scatter_add_(0, index.flatten(), counted.flatten().long())

    values, largest = blocks.view(torch.float64), amax.view(torch.float64)
    row[NEAR] += (counted & (values > largest * (1 / NEAR_RATIO))).sum()
    row[EDGE] += (counted & (values <= largest * (1 / EDGE_RATIO))).sum()
    row[DEEP] += (counted & (values <= largest * (1 / DEEP_RATIO))).sum()

    row[ZERO_BLOCKS] += (~filled).sum()
    place, peak = binade.flatten() - BINADE_MIN, own_class.flatten()
    row[PEAKS:AMAXES].scatter_add_(0, peak, filled.long())
    row[AMAXES:ELEMENTS].scatter_add_(0, place, filled.long())
    row[ELEMENTS:].scatter_add_(0, peak * BINADES + place, counted.sum(dim=1))


def _within(magnitude: Tensor) -> Tensor:
    return magnitude.clamp(max=_LARGEST).where(magnitude >= _NORMAL, _SMALLEST)


def _class_of(magnitude: Tensor) -> Tensor:
    """How many of 1, 1.5, 1.75 and 1.875 a mantissa exceeds."""
    mantissa = magnitude & _MANTISSA
    above = [(mantissa > eighths * _EIGHTH).long() for eighths in (0, 4, 6, 7)]
    return above[0] + above[1] + above[2] + above[3]
