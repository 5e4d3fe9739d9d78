"""How the CPU loops count exponents, which no compiler vectorises: a store for each two elements.

A store an element is what a histogram costs, and what a pass over a tensor waits for. So large
tensors count pairs of elements, in one table of 256 by 256 exponents. A tensor has few exponents,
so the cells it fills stay in the first-level cache. While it stores, sums are taken and the next
chunk is fetched.
"""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit
from numwatch.stats.lanes import LANES, SUMS, TAKEN, add_floats, add_halves
from numwatch.stats.memory import array_at, prefetch

_U16 = np.uint16
_U32 = np.uint32
_U64 = np.uint64

CHUNK = 2048
"""Elements taken at a time: all that is made of them fits the first-level cache."""
BLOCK = 1 << 31
"""Elements after which the tables are emptied, lest their 32 bits overflow."""
FEW = 4 * CHUNK
"""Tensors of fewer elements are counted one by one: the table of pairs takes time to empty."""
EXPONENT_0, TOP = range(2)
"""Columns of a tensor's tally: how many elements have exponent 0, and the largest magnitude."""

_PAIRS = CHUNK // 2
_WAYS = 4
"""Private tables: neighbours of the same exponents would wait for each other in one."""
_TABLE = 1 << 16
_SINGLES = _WAYS * _TABLE
BUFFER = _SINGLES + _WAYS * 256
"""Where in a workspace a chunk may be widened."""
_INDEX = BUFFER + CHUNK
_SUMS = _INDEX + _PAIRS // 2
"""Where the sums of `lanes` lie."""
TALLY = _SUMS + 2 * SUMS
"""Where a tensor's tally lies, int64 [10]."""
MANTISSA_BITS = TALLY + 2 * 10
"""Where the workspace says which dtype it is for: by the width of the mantissa."""
WORKSPACE = MANTISSA_BITS + 2
"""Size of a thread's workspace for a dtype in uint32: tables of pairs and of single exponents,
both zero between calls, the chunk, where its pairs stand in a table, the sums, the tally and the
dtype. It lies at a multiple of 64, or lanes would be stored over two lines of the cache."""


@jit
def count_exponents(chunk: Any, summed: Any, n: Any, ahead: Any, width: Any, work: Any) -> None:
    """Counts the exponents of a chunk, or of its pairs, in a workspace.

    Args:
        chunk: FP32 patterns, uint32, at most [CHUNK].
        summed: Address of a whole chunk whose sums are to be taken along; 0 for none.
        n: Elements of the whole tensor.
        ahead: Address of the tensor's next chunk, which need not exist.
        width: Bytes of an element there.
        work: Address of the workspace.
    """
    if n >= FEW and chunk.size == CHUNK:
        _index_pairs(chunk, work)
        _count_pairs(summed, 4, ahead, width, work)
        return
    singles = array_at(work + 4 * _SINGLES, _WAYS * 256, _U32)
    for start in range(chunk.size):
        i = _U64(start)
        way = _U64(i & _U64(_WAYS - 1)) << _U64(8)
        singles[way | _U64(chunk[i] >> _U32(23) & _U32(0xFF))] += _U32(1)


@jit
def _index_pairs(chunk: Any, work: Any) -> None:
    """Pairs each element of a chunk's first half with one of the other half."""
    index = array_at(work + 4 * _INDEX, _PAIRS, _U16)
    for i in range(_PAIRS):
        first = _U32(chunk[i] >> _U32(23)) & _U32(0xFF)
        second = _U32(chunk[i + _PAIRS] >> _U32(15)) & _U32(0xFF00)
        index[i] = _U32(first | second)


@jit
def count_bfloat16(at: Any, ahead: Any, work: Any) -> None:
    """Counts a whole chunk's pairs as `count_exponents` does, from BF16, and takes its sums."""
    chunk = array_at(at, CHUNK, _U16)
    index = array_at(work + 4 * _INDEX, _PAIRS, _U16)
    for i in range(_PAIRS):
        first = _U16(_U16(chunk[i] >> _U16(7)) & _U16(0xFF))
        second = _U16(_U16(chunk[i + _PAIRS] << _U16(1)) & _U16(0xFF00))
        index[i] = _U16(first | second)
    _count_pairs(at, 2, ahead, 2, work)


@jit
def _count_pairs(at: Any, size: Any, ahead: Any, width: Any, work: Any) -> None:
    """Counts a chunk's pairs where they stand in the table, while it adds up and fetches.

    Args:
        at: Address of its elements, 0 where they are not to be added up.
        size: Bytes of an element there: BF16 or FP32.
        ahead: As for `count_exponents`.
        width: Likewise.
        work: Address of the workspace.
    """
    index = array_at(work + 4 * _INDEX, _PAIRS, _U16)
    table = array_at(work, _SINGLES, _U32)
    one = _U32(1)
    sums = work + 4 * _SUMS
    for start in range(0, _PAIRS, TAKEN // 2):
        if at:
            if size == 2:  # noqa: PLR2004
                add_halves(at, sums)
            else:
                add_floats(at, sums)
            at += TAKEN * size
        prefetch(ahead)
        prefetch(ahead + 16 * width)
        ahead += 32 * width
        for k in range(0, TAKEN // 2, 8):
            _count_eight(index, _U64(start + k), table, one)


@jit
def _count_eight(index: Any, i: Any, table: Any, one: Any) -> None:
    table[_U64(index[i])] += one
    table[_U64(index[i + _U64(1)]) + _U64(1 * _TABLE)] += one
    table[_U64(index[i + _U64(2)]) + _U64(2 * _TABLE)] += one
    table[_U64(index[i + _U64(3)]) + _U64(3 * _TABLE)] += one
    table[_U64(index[i + _U64(4)])] += one
    table[_U64(index[i + _U64(5)]) + _U64(1 * _TABLE)] += one
    table[_U64(index[i + _U64(6)]) + _U64(2 * _TABLE)] += one
    table[_U64(index[i + _U64(7)]) + _U64(3 * _TABLE)] += one


@jit
def clear_sums(work: Any) -> None:
    """Empties the sums, before a tensor."""
    sums = array_at(work + 4 * _SUMS, SUMS, np.float64)
    for lane in range(SUMS):
        sums[lane] = 0.0


@jit
def sums_in(work: Any) -> Any:
    """The sums that were taken along: of elements and of their squares."""
    sums = array_at(work + 4 * _SUMS, SUMS, np.float64)
    total = 0.0
    squares = 0.0
    for lane in range(LANES):
        total += sums[lane]
        squares += sums[LANES + lane]
    return total, squares


@jit
def empty_tables(n: Any, tally: Any, smallest: Any, counts: Any, work: Any) -> None:
    """Moves what the tables hold to the row, where exponents 1 ... 254 are columns 1 ... 254.

    Args:
        n: As for `count_exponents`.
        tally: int64; its TOP must be known, its EXPONENT_0 is added to. Exponent 255 is dropped.
        smallest: The smallest exponent there is but 0.
        counts: The row's counts.
        work: Address of the workspace.
    """
    singles = array_at(work + 4 * _SINGLES, _WAYS * 256, _U32)
    if n >= FEW:
        _empty_pairs(max(smallest, 1), tally[TOP] >> 23, singles, work)
    for way in range(_WAYS):
        tally[EXPONENT_0] += singles[way * 256]
    for exponent in range(1, 255):
        here = _U32(0)
        for way in range(_WAYS):
            here = _U32(here + singles[way * 256 + exponent])
        counts[exponent] += here
    for cell in range(_WAYS * 256):
        singles[cell] = _U32(0)


@jit
def _empty_pairs(low: Any, high: Any, singles: Any, work: Any) -> None:
    """Adds what the pairs hold to the single exponents: there are 0 and those from low to high."""
    table = array_at(work, _SINGLES, _U32)
    for second in range(high + 1):
        if 0 < second < low:
            continue
        line = second * 256
        total = _take(table, line)
        singles[0] += total
        for first in range(low, high + 1):
            n = _take(table, line + first)
            singles[first] += n
            total = _U32(total + n)
        singles[second] += total


@jit
def _take(table: Any, cell: Any) -> Any:
    """Empties a cell of all ways; returns what was in it."""
    n = _U32(0)
    for way in range(_WAYS):
        n = _U32(n + table[way * _TABLE + cell])
        table[way * _TABLE + cell] = _U32(0)
    return n
