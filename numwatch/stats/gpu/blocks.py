"""On the device: tiles of 32 rows and 64 columns, each read once, into the rows of block counts.

A tile holds whole blocks of 16 and 32 along both dimensions. Elements are counted by
`tl.histogram`, which keeps its 256 bins in registers; blocks by the binade of their amax, of which
a tile has few: round by round all blocks of the highest binade left are summed, class by class in
one word of five fields.
"""

from functools import partial

import numpy as np
import triton.language as tl

from numwatch.stats import block_layout as layout
from numwatch.stats.gpu.jit import jit
from numwatch.stats.gpu.reading import as_fp32, pointer
from numwatch.stats.layout import BINADES

HEIGHT, WIDTH = 32, 64
"""Of a tile. So many elements, and one more, fit in a field of 12 bits."""

_HEIGHT = tl.constexpr(HEIGHT)
_WIDTH = tl.constexpr(WIDTH)
_BELOW = tl.constexpr(layout.BELOW)
_CELLS = tl.constexpr(layout.CELLS)
_TOPS = tl.constexpr(layout.TOPS)
_DEPTH_MAX = tl.constexpr(layout.DEPTH_MAX)
_NEAR = tl.constexpr(layout.NEAR)
_EDGE = tl.constexpr(layout.EDGE)
_DEEP = tl.constexpr(layout.DEEP)
_ZERO_BLOCKS = tl.constexpr(layout.ZERO_BLOCKS)
_PEAKS = tl.constexpr(layout.PEAKS)
_AMAXES = tl.constexpr(layout.AMAXES)
_ELEMENTS = tl.constexpr(layout.ELEMENTS)
_COLUMNS = tl.constexpr(layout.BLOCK_COLUMNS)
_CLASSES = tl.constexpr(layout.CLASSES)
_BINADES = tl.constexpr(BINADES)
# FP64 patterns, for Triton may make an FP32 constant of a number.
_NEAR_SHARE = tl.constexpr(int(np.float64(1 / layout.NEAR_RATIO).view(np.int64)))
_EDGE_SHARE = tl.constexpr(int(np.float64(1 / layout.EDGE_RATIO).view(np.int64)))
_DEEP_SHARE = tl.constexpr(int(np.float64(1 / layout.DEEP_RATIO).view(np.int64)))

_BINS = tl.constexpr(256)
_FIELD = tl.constexpr(12)
_SIGN = tl.constexpr(0x7FFF_FFFF)
_INF = tl.constexpr(0x7F80_0000)
_NORMAL = tl.constexpr(0x0080_0000)
_MANTISSA = tl.constexpr(0x007F_FFFF)


@jit
def _class_of(magnitude: tl.tensor) -> tl.tensor:
    """How many of 1, 1.5, 1.75 and 1.875 the mantissa of FP32 patterns exceeds."""
    mantissa = magnitude & _MANTISSA
    low = (mantissa > 0).to(tl.int32) + (mantissa > 0x40_0000).to(tl.int32)
    return low + (mantissa > 0x60_0000).to(tl.int32) + (mantissa > 0x70_0000).to(tl.int32)


@jit
def _within(magnitude: tl.tensor) -> tl.tensor:
    """What lies below 2^-126 has a mantissa of its own there, whatever it was."""
    return tl.where(magnitude >= _NORMAL, magnitude, 1)


@jit
def _share_of(amax: tl.tensor, SHARE: tl.constexpr) -> tl.tensor:
    """The largest FP32 pattern whose value is at most a share of an amax, as in FP64."""
    share = tl.full([], SHARE, tl.int64).to(tl.float64, bitcast=True)
    exact = amax.to(tl.float32, bitcast=True).to(tl.float64) * share
    nearest = exact.to(tl.float32)
    above = (nearest.to(tl.float64) > exact).to(tl.int32)
    return nearest.to(tl.int32, bitcast=True) - above


@jit
def _total(of: tl.tensor) -> tl.tensor:
    return tl.sum(tl.sum(tl.sum(of.to(tl.int32), axis=2), axis=1), axis=0).to(tl.int64)


@jit
def _add(
    elements: tl.tensor,
    exists: tl.tensor,
    row: tl.tensor,
    SIZE: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """Adds the blocks of one size and direction of a tile.

    Args:
        elements: FP32 magnitude patterns [HEIGHT, WIDTH], zero where not finite or outside.
        exists: Which of them lie inside, int32.
        row: int64 [BLOCK_COLUMNS].
        SIZE: 16 or 32.
        LAST: Whether along the last dimension.
    """
    A: tl.constexpr = _HEIGHT if LAST else _HEIGHT // SIZE
    B: tl.constexpr = _WIDTH // SIZE if LAST else SIZE
    C: tl.constexpr = SIZE if LAST else _WIDTH
    AXIS: tl.constexpr = 2 if LAST else 1
    blocks = tl.reshape(elements, (A, B, C))
    inside = tl.max(tl.reshape(exists, (A, B, C)), axis=AXIS)
    amax = tl.max(blocks, axis=AXIS)
    counted = blocks > 0
    nonzeros = tl.sum(counted.to(tl.int32), axis=AXIS)
    peak = _class_of(_within(amax))
    binade = _within(amax) >> 23

    own = _within(blocks)
    depth = tl.minimum(tl.expand_dims(binade, AXIS) - ((own - 1) >> 23), _DEPTH_MAX)
    cell = tl.where(depth == 0, _class_of(own), depth + _TOPS) - 1
    # What is not counted goes to the last bin, which no cell has.
    cell = tl.where(counted, tl.expand_dims(peak, AXIS) * _CELLS + cell, _BINS - 1)
    found = tl.histogram(tl.reshape(cell, (_HEIGHT * _WIDTH,)), _BINS)
    bins = tl.arange(0, _BINS)
    tl.atomic_add(row + bins, found.to(tl.int64), mask=(bins < _BELOW) & (found > 0), sem="relaxed")

    near = blocks > tl.expand_dims(_share_of(amax, _NEAR_SHARE), AXIS)
    edge = blocks <= tl.expand_dims(_share_of(amax, _EDGE_SHARE), AXIS)
    deep = blocks <= tl.expand_dims(_share_of(amax, _DEEP_SHARE), AXIS)
    tl.atomic_add(row + _NEAR, _total(counted & near), sem="relaxed")
    tl.atomic_add(row + _EDGE, _total(counted & edge), sem="relaxed")
    tl.atomic_add(row + _DEEP, _total(counted & deep), sem="relaxed")
    empty = ((amax == 0) & (inside > 0)).to(tl.int32)
    zero_blocks = tl.sum(tl.sum(empty, axis=1), axis=0)
    tl.atomic_add(row + _ZERO_BLOCKS, zero_blocks.to(tl.int64), sem="relaxed")

    one = tl.full([1, 1], 1, tl.int64) << (peak * _FIELD).to(tl.int64)
    many = nonzeros.to(tl.int64) << (peak * _FIELD).to(tl.int64)
    fields = tl.arange(0, 8)
    shift = (tl.minimum(fields, _CLASSES - 1) * _FIELD).to(tl.int64)
    left = tl.where(amax > 0, binade, -1)
    highest = tl.max(tl.max(left, axis=1), axis=0)
    while highest >= 0:
        here = left == highest
        peaks = (tl.sum(tl.sum(tl.where(here, one, 0), axis=1), axis=0) >> shift) & 0xFFF
        within = (tl.sum(tl.sum(tl.where(here, many, 0), axis=1), axis=0) >> shift) & 0xFFF
        filled = (fields < _CLASSES) & (peaks > 0)
        amaxes = tl.sum(here.to(tl.int32), axis=1)
        tl.atomic_add(row + _AMAXES + highest, tl.sum(amaxes, axis=0).to(tl.int64), sem="relaxed")
        tl.atomic_add(row + _PEAKS + fields, peaks, mask=filled, sem="relaxed")
        place = row + _ELEMENTS + fields * _BINADES + highest
        tl.atomic_add(place, within, mask=filled, sem="relaxed")
        left = tl.where(here, -1, left)
        highest = tl.max(tl.max(left, axis=1), axis=0)


@partial(jit, do_not_specialize=["address", "rows", "columns", "row_step", "column_step"])
def count_tile(
    address: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    counts: tl.tensor,
    TURNED: tl.constexpr,
    BYTES: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    LARGEST: tl.constexpr,
    HAS_INF: tl.constexpr,
    MINUS_ZERO_IS_NAN: tl.constexpr,
) -> None:
    """Adds one tile of a matrix to int64 rows [BLOCK_ROWS, BLOCK_COLUMNS].

    Args:
        address: Where the matrix begins.
        rows: How many rows it has.
        columns: How many columns.
        row_step: Elements from one row to the next.
        column_step: Elements from one column to the next.
        counts: Rows as `BLOCK_KINDS` says.
        TURNED: Whether the matrix is read as it lies in memory, not as it is.
        BYTES: Of an element; this and the others: see `dtypes.BitLayout`.
        MANTISSA: Likewise.
        BIAS: Likewise.
        LARGEST: Likewise.
        HAS_INF: Likewise.
        MINUS_ZERO_IS_NAN: Likewise.
    """
    across = (tl.full([], 0, tl.int64) + columns + (_WIDTH - 1)) // _WIDTH
    tile = tl.full([], 0, tl.int64) + tl.program_id(0)
    row = (tile // across) * _HEIGHT + tl.arange(0, _HEIGHT)[:, None]
    column = (tile % across) * _WIDTH + tl.arange(0, _WIDTH)[None, :]
    exists = (row < rows) & (column < columns)
    pointers = pointer(address, BYTES, BYTES) + (row * row_step + column * column_step)
    raw = tl.load(pointers, mask=exists, other=0)
    bits = as_fp32(raw, BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN) & _SIGN
    elements = tl.where(bits < _INF, bits, 0)
    inside = exists.to(tl.int32)
    OTHER: tl.constexpr = 2 if TURNED else 0
    _add(elements, inside, counts + OTHER * _COLUMNS, 16, True)
    _add(elements, inside, counts + (OTHER + 1) * _COLUMNS, 32, True)
    _add(elements, inside, counts + (2 - OTHER) * _COLUMNS, 16, False)
    _add(elements, inside, counts + (3 - OTHER) * _COLUMNS, 32, False)
