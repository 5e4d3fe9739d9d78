"""The CPU loops over blocks: one pass over the memory, both directions, a tile at a time.

All dtypes are read as FP32 bit patterns. A tile of 32 rows and 128 columns, which stays in the
first-level cache, is counted row by row and then, turned round, column by column. Counts go to a
fine histogram first, eight steps to a binade, and are put into the row's cells at the end.
"""

from typing import Any

import numpy as np

from numwatch.stats.block_layout import (
    AMAXES,
    BLOCK_ROWS,
    BLOCK_SIZES,
    CELLS,
    CLASSES,
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
from numwatch.stats.jit import jit
from numwatch.stats.layout import BINADES
from numwatch.stats.loops import as_float64, widen_float16

_U32 = np.uint32
_U64 = np.uint64

STRIP = 32
"""Rows taken at a time: the largest block."""
_WIDTH = 128
_WORK = 7
"""Lines of numbers kept for each column."""

_MAGNITUDE = _U32(0x7FFF_FFFF)
_MANTISSA = _U32(0x007F_FFFF)
_LARGEST = _U32(0x7F7F_FFFE)
_NONE = _U32(0xFFFF_FFFF)
"""Patterns are kept less 1, so that a zero wraps around to this; non-finite ones are made it."""

_FAR = 8 * 256
"""Steps of an eighth of a binade, no depth is so large; beyond it lie the elements not counted."""
_STEPS = _FAR + 8


@jit
def sweep_float32(bits: Any, columns: int, rows: Any) -> None:
    """Adds float32 elements, given as uint32 [n * columns], to rows [4, BLOCK_COLUMNS]."""
    fine = np.zeros((BLOCK_ROWS, CLASSES * _STEPS), np.uint32)
    step = STRIP * columns
    for start in range(0, bits.size, step):
        _add_strip(bits[start : start + step], columns, fine, rows)
    _add_fine(fine, rows)


@jit
def sweep_bfloat16(bits: Any, columns: int, rows: Any) -> None:
    """Adds bfloat16 elements, given as uint16 [n * columns], to the rows."""
    fine = np.zeros((BLOCK_ROWS, CLASSES * _STEPS), np.uint32)
    step = STRIP * columns
    strip = np.empty(step, np.uint32)
    for start in range(0, bits.size, step):
        part = bits[start : start + step]
        for i in range(part.size):
            strip[i] = _U32(part[i]) << _U32(16)
        _add_strip(strip[: part.size], columns, fine, rows)
    _add_fine(fine, rows)


@jit
def sweep_float16(bits: Any, columns: int, rows: Any) -> None:
    """Adds float16 elements, given as uint16 [n * columns], to the rows."""
    fine = np.zeros((BLOCK_ROWS, CLASSES * _STEPS), np.uint32)
    step = STRIP * columns
    strip = np.empty(step, np.uint32)
    for start in range(0, bits.size, step):
        part = bits[start : start + step]
        widen_float16(part, strip)
        _add_strip(strip[: part.size], columns, fine, rows)
    _add_fine(fine, rows)


@jit
def sweep_float8(bits: Any, columns: int, rows: Any, meanings: Any) -> None:
    """Adds float8 elements, uint8 [n * columns], whose FP32 patterns are `meanings` [256]."""
    fine = np.zeros((BLOCK_ROWS, CLASSES * _STEPS), np.uint32)
    step = STRIP * columns
    strip = np.empty(step, np.uint32)
    for start in range(0, bits.size, step):
        part = bits[start : start + step]
        for i in range(part.size):
            strip[i] = meanings[part[i]]
        _add_strip(strip[: part.size], columns, fine, rows)
    _add_fine(fine, rows)


@jit
def _add_strip(strip: Any, columns: Any, fine: Any, rows: Any) -> None:
    """Adds FP32 patterns of up to `STRIP` whole rows."""
    height = strip.size // columns
    tile, turned = np.empty(STRIP * _WIDTH, np.uint32), np.empty(STRIP * _WIDTH, np.uint32)
    work = np.empty((_WORK, _WIDTH), np.uint32)
    for left in range(0, columns, _WIDTH):
        width = min(_WIDTH, columns - left)
        for r in range(height):
            start = r * columns + left
            _load(strip[start : start + width], tile[r * width : r * width + width])
        for c in range(width):
            for r in range(height):
                turned[_U64(c * height + r)] = tile[_U64(r * width + c)]
        for i in range(len(BLOCK_SIZES)):
            across = i + len(BLOCK_SIZES)
            step = BLOCK_SIZES[i]
            for start in range(0, width, step):
                lines = turned[start * height : min(start + step, width) * height]
                _add_blocks(lines, height, work, fine[i], rows[i])
            for start in range(0, height, step):
                lines = tile[start * width : min(start + step, height) * width]
                _add_blocks(lines, width, work, fine[across], rows[across])


@jit
def _load(patterns: Any, tile: Any) -> None:
    """Magnitudes less 1."""
    for i in range(patterns.size):
        less = _U32(_U32(patterns[i] & _MAGNITUDE) - _U32(1))
        tile[i] = _NONE if less > _LARGEST else less


@jit
def _add_blocks(lines: Any, width: Any, work: Any, fine: Any, row: Any) -> None:
    """Adds blocks that lie side by side, each a column of `lines` [size * width]."""
    largest, elements = work[0], work[1]
    _find_amaxes(lines, width, largest)
    _count_ratios(lines, width, work, row)
    _add_depths(lines, width, work, fine)
    for c in range(width):
        if largest[c] == _U32(0):
            row[ZERO_BLOCKS] += 1
            continue
        binade = np.int64(largest[c] >> _U32(23))
        peak = _class_of(largest[c])
        row[PEAKS + peak] += 1
        row[AMAXES + binade] += 1
        row[ELEMENTS + peak * BINADES + binade] += np.int64(elements[c])


@jit
def _find_amaxes(lines: Any, width: Any, largest: Any) -> None:
    for c in range(width):
        largest[c] = _U32(0)
    for start in range(0, lines.size, width):
        line = lines[start : start + width]
        for c in range(width):
            largest[c] = max(largest[c], _U32(line[c] + _U32(1)))


@jit
def _count_ratios(lines: Any, width: Any, work: Any, row: Any) -> None:
    """Counts the elements of each block, and those on either side of parts of its amax."""
    largest, elements, near, edge, deep = work[0], work[1], work[2], work[3], work[4]
    for c in range(width):
        elements[c] = _U32(0)
        amax = as_float64(largest[c])
        near[c] = _pattern_at_most(amax * (1 / NEAR_RATIO))
        edge[c] = _pattern_at_most(amax * (1 / EDGE_RATIO))
        deep[c] = _pattern_at_most(amax * (1 / DEEP_RATIO))
    for start in range(0, lines.size, width):
        line = lines[start : start + width]
        above_near, below_edge, below_deep = _U32(0), _U32(0), _U32(0)
        for c in range(width):
            less = line[c]
            counted = _U32(less != _NONE)
            elements[c] = _U32(elements[c] + counted)
            above_near = _U32(above_near + _U32(counted & _U32(less >= near[c])))
            below_edge = _U32(below_edge + _U32(less < edge[c]))
            below_deep = _U32(below_deep + _U32(less < deep[c]))
        row[NEAR] += np.int64(above_near)
        row[EDGE] += np.int64(below_edge)
        row[DEEP] += np.int64(below_deep)


@jit
def _add_depths(lines: Any, width: Any, work: Any, fine: Any) -> None:
    """Adds how far below the top of its block's binade an element lies, in eighths of a binade."""
    largest, top, base = work[0], work[5], work[6]
    for c in range(width):
        top[c] = _U32(_U32(_U32(largest[c] >> _U32(23)) << _U32(3)) + _U32(7))
        base[c] = _U32(_class_of(largest[c]) * _STEPS)
    for start in range(0, lines.size, width):
        line = lines[start : start + width]
        for c in range(width):
            less = line[c]
            step = _U32(less >> _U32(20))
            # One place for all up to 2^-126.
            step = _U32(0) if step < _U32(8) else step
            down = _U32(_FAR) if less == _NONE else _U32(top[c] - step)
            fine[_U64(_U32(base[c] + down))] += _U32(1)


@jit
def _class_of(magnitude: Any) -> Any:
    """How many of 1, 1.5, 1.75 and 1.875 the mantissa exceeds; 1 below 2^-126."""
    if magnitude <= _MANTISSA:
        return 1
    mantissa = _U32(magnitude & _MANTISSA)
    return (
        np.int64(mantissa > _U32(0))
        + np.int64(mantissa > _U32(0x0040_0000))
        + np.int64(mantissa > _U32(0x0060_0000))
        + np.int64(mantissa > _U32(0x0070_0000))
    )


@jit
def _pattern_at_most(value: Any) -> Any:
    """The FP32 pattern of the largest FP32 magnitude up to a normal FP64 value."""
    bits = np.float64(value).view(np.uint64)
    exponent = np.int64(bits >> np.uint64(52)) - 1023 + 127
    if exponent <= 0:
        return _U32(value * 2.0**149)
    mantissa = np.int64(bits >> np.uint64(29)) & 0x7F_FFFF
    return _U32((exponent << 23) | mantissa)


@jit
def _add_fine(fine: Any, rows: Any) -> None:
    """Puts the fine histogram into the rows' cells."""
    for kind in range(BLOCK_ROWS):
        for k in range(CLASSES):
            for step in range(_FAR):
                count = np.int64(fine[kind, k * _STEPS + step])
                if count == 0:
                    continue
                depth = step >> 3
                cell = TOPS + min(depth, DEPTH_MAX) - 1
                if depth == 0:
                    # Eighths from the top: 1.875, 1.75, two down to 1.5, four down to 1.
                    cell = 3 - (step > 0) - (step > 1) - (step > 3)  # noqa: PLR2004
                rows[kind, k * CELLS + cell] += count
