"""The CPU loops over FP32, BF16 and FP16: one pass over the memory, a chunk at a time.

All are read as FP32 bit patterns, chunk by chunk in the first-level cache, where loops that
the compiler vectorises take extremes and powers of two, and another counts exponents while it adds
up in FP64.
Whole chunks of BF16 are left in 16 bits, twice as many to an instruction. Chunks with FP32
subnormals or non-finite values take slower loops. Whatever depends on subnormals
is done on integers, since the processor may take them for zero.
"""

from typing import Any

import numpy as np

from numwatch.stats.exponent_loops import (
    BLOCK,
    BUFFER,
    CHUNK,
    EXPONENT_0,
    FEW,
    MANTISSA_BITS,
    TALLY,
    TOP,
    WORKSPACE,
    clear_sums,
    count_bfloat16,
    count_exponents,
    empty_tables,
    sums_in,
)
from numwatch.stats.jit import jit, jit_sum
from numwatch.stats.layout import (
    AMAX,
    AMIN,
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
)
from numwatch.stats.memory import array_at, task, tasks_in

# numba turns uint32 arithmetic into 64 bits where it isn't told otherwise, hence all the casts.
_U16 = np.uint16
_U32 = np.uint32

_MAGNITUDE = _U32(0x7FFF_FFFF)
_MANTISSA = _U32(0x007F_FFFF)
_INF = _U32(0x7F80_0000)
_SUBNORMAL_STEP = 2.0**-149
_FP32_BITS, _FP16_BITS, _BF16_BITS = 23, 10, 7
_HALF = 2

# Columns of a tensor's own tally beside EXPONENT_0 and TOP. The smallest is kept less 1.
_NAN, _POSINF, _NEGINF, _SUBNORMAL, _SUBNORMAL_POW2, _NO_MANTISSA = range(2, 8)
_LARGEST, _SMALLEST = 8, 9


@jit
def sweep_floats(address: Any, numel: Any, counts: Any, reals: Any, work: Any) -> None:
    """Adds float32, bfloat16 or float16 elements to rows; see `memory`.

    `work` leads to a uint32 [WORKSPACE] for the dtype.
    """
    mantissa_bits = array_at(work, WORKSPACE, _U32)[MANTISSA_BITS]
    width = 4 if mantissa_bits == _FP32_BITS else 2
    for k in range(tasks_in(numel, counts)):
        at, n, row_at, reals_at = task(k, address, numel, counts, reals)
        row = array_at(row_at, COUNTS, np.int64)
        row_reals = array_at(reals_at, REALS, np.float64)
        tally = _new_tally(work)
        clear_sums(work)
        many = n >= FEW
        halves = mantissa_bits == _BF16_BITS
        for start in range(0, n, CHUNK):
            here = at + width * start
            ahead = here + width * CHUNK
            size = min(CHUNK, n - start)
            whole = many and size == CHUNK
            if not (whole and halves and _add_bfloat16(here, ahead, tally, work)):
                if width == _HALF:
                    here = _widened(here, size, mantissa_bits, work)
                chunk = array_at(here, size, _U32)
                floats = array_at(here, size, np.float32)
                normal = _add_chunk(chunk, floats, whole, tally, row_reals)
                summed = here if normal and whole else 0
                count_exponents(chunk, summed, n, ahead, width, work)
            if start + CHUNK >= n or (start + CHUNK) % BLOCK == 0:
                _empty_tables(n, tally, row, work)
        _end_row(n, tally, row, row_reals, work)


@jit
def _widened(at: Any, size: Any, mantissa_bits: Any, work: Any) -> Any:
    """Widens a chunk of 16-bit elements in the workspace; returns the address."""
    bits = array_at(at, size, _U16)
    buffer = array_at(work + 4 * BUFFER, CHUNK, _U32)
    if mantissa_bits == _FP16_BITS:
        widen_float16(bits, buffer)
    else:
        for i in range(size):
            buffer[i] = _U32(bits[i]) << _U32(16)
    return work + 4 * BUFFER


@jit
def widen_float16(bits: Any, buffer: Any) -> None:
    """FP16 patterns to FP32 patterns; every FP16 subnormal is a normal FP32 value."""
    for i in range(bits.size):
        half = _U32(bits[i])
        magnitude = _U32(half & _U32(0x7FFF))
        wide = _U32(_U32(magnitude << _U32(13)) + _U32(112 << 23))
        if magnitude >= _U32(0x7C00):
            wide = _U32(wide + _U32(112 << 23))
        if magnitude < _U32(0x0400):
            # The mantissa as an integer has the value's own exponent once it is a float.
            wide = np.float32(np.float32(np.int32(magnitude)) * np.float32(2.0**-24)).view(_U32)
        buffer[i] = wide | _U32(_U32(half & _U32(0x8000)) << _U32(16))


@jit
def _new_tally(work: Any) -> Any:
    tally = array_at(work + 4 * TALLY, 10, np.int64)
    for column in range(10):
        tally[column] = 0
    tally[_SMALLEST] = 0xFFFF_FFFF
    return tally


@jit
def _add_chunk(chunk: Any, floats: Any, whole: Any, tally: Any, reals: Any) -> Any:
    """Adds what the exponents don't tell, but the sums of what is whole and normal.

    Returns:
        Whether it is normal: finite, and no FP32 subnormals.
    """
    top, smallest, no_mantissa = _extremes(chunk)
    largest = top
    # `smallest` is one less than the smallest non-zero magnitude; all ones where there is none.
    normal = top < _INF and smallest >= _MANTISSA
    total = squares = 0.0
    if not normal:
        largest = _add_specials(chunk, tally)
        total, squares = _sums_of_specials(chunk, floats)
    elif not whole:
        total, squares = _sums(floats)
    _add_extremes(tally, top, largest, smallest, no_mantissa)
    reals[SUM] += total
    reals[SUMSQ] += squares
    return normal


@jit
def _add_extremes(tally: Any, top: Any, largest: Any, smallest: Any, no_mantissa: Any) -> None:
    tally[TOP] = max(tally[TOP], np.int64(top))
    tally[_LARGEST] = max(tally[_LARGEST], np.int64(largest))
    tally[_SMALLEST] = min(tally[_SMALLEST], np.int64(smallest))
    tally[_NO_MANTISSA] += no_mantissa


@jit
def _add_bfloat16(at: Any, ahead: Any, tally: Any, work: Any) -> Any:
    """Adds a whole chunk in lanes of 16 bits; False, and nothing added, if it has specials."""
    chunk = array_at(at, CHUNK, _U16)
    largest = _U16(0)
    smallest = _U16(0xFFFF)
    no_mantissa = _U16(0)
    for i in range(CHUNK):
        magnitude = _U16(chunk[i] & _U16(0x7FFF))
        largest = max(largest, magnitude)
        smallest = min(smallest, _U16(magnitude - _U16(1)))
        no_mantissa = _U16(no_mantissa + _U16(_U16(magnitude & _U16(0x7F)) == _U16(0)))
    if largest >= _U16(0x7F80) or smallest < _U16(0x7F):
        return False
    top = _U32(largest) << _U32(16)
    # As patterns of FP32; of nothing but zeros all ones again.
    less = _U32(_U32(_U32(_U16(smallest + _U16(1))) << _U32(16)) - _U32(1))
    _add_extremes(tally, top, top, less, _U32(no_mantissa))
    count_bfloat16(at, ahead, work)
    return True


@jit
def _extremes(chunk: Any) -> Any:
    """Largest magnitude, smallest non-zero magnitude less 1, and how many mantissas are zero."""
    largest = _U32(0)
    smallest = _U32(0xFFFF_FFFF)
    no_mantissa = _U32(0)
    for i in range(chunk.size):
        magnitude = _U32(chunk[i] & _MAGNITUDE)
        largest = max(largest, magnitude)
        # 0 - 1 wraps around to the largest number, so that zeros don't count.
        smallest = min(smallest, _U32(magnitude - _U32(1)))
        no_mantissa = _U32(no_mantissa + _U32(_U32(magnitude & _MANTISSA) == _U32(0)))
    return largest, smallest, no_mantissa


@jit_sum
def _sums(floats: Any) -> Any:
    total = 0.0
    squares = 0.0
    for i in range(floats.size):
        value = np.float64(floats[i])
        total += value
        squares += value * value
    return total, squares


@jit
def _add_specials(chunk: Any, tally: Any) -> Any:
    """Counts what is subnormal or not finite; returns the largest finite magnitude."""
    largest = nans = infs = posinfs = subnormals = powers = _U32(0)
    for i in range(chunk.size):
        magnitude = _U32(chunk[i] & _MAGNITUDE)
        less = _U32(magnitude - _U32(1))
        largest = max(largest, magnitude if magnitude < _INF else _U32(0))
        nans = _U32(nans + _U32(magnitude > _INF))
        infs = _U32(infs + _U32(magnitude == _INF))
        posinfs = _U32(posinfs + _U32(chunk[i] == _INF))
        subnormal = _U32(less < _MANTISSA)
        subnormals = _U32(subnormals + subnormal)
        powers = _U32(powers + _U32(subnormal & _U32(_U32(magnitude & less) == _U32(0))))
    tally[_NAN] += nans
    tally[_POSINF] += posinfs
    tally[_NEGINF] += infs - posinfs
    tally[_SUBNORMAL] += subnormals
    tally[_SUBNORMAL_POW2] += powers
    return largest


@jit_sum
def _sums_of_specials(chunk: Any, floats: Any) -> Any:
    """Sums of the finite elements, subnormals by their patterns."""
    total = 0.0
    squares = 0.0
    for i in range(chunk.size):
        magnitude = _U32(chunk[i] & _MAGNITUDE)
        tiny = np.float64(np.int32(magnitude)) * _SUBNORMAL_STEP
        tiny = -tiny if chunk[i] > _MAGNITUDE else tiny
        value = tiny if magnitude <= _MANTISSA else np.float64(floats[i])
        value = value if magnitude < _INF else 0.0
        total += value
        squares += value * value
    return total, squares


@jit
def as_float64(magnitude: Any) -> Any:
    """The value of an FP32 magnitude pattern, exactly."""
    if magnitude > _MANTISSA:
        return np.float64(_U32(magnitude).view(np.float32))
    return np.float64(magnitude) * _SUBNORMAL_STEP


@jit
def _empty_tables(n: Any, tally: Any, counts: Any, work: Any) -> None:
    smallest = _U32(tally[_SMALLEST] + 1) >> _U32(23)
    empty_tables(n, tally, np.int64(smallest), counts, work)


@jit
def _end_row(n: Any, tally: Any, counts: Any, reals: Any, work: Any) -> None:
    """Adds a tensor's tally to the row, once its exponents are there."""
    zeros = tally[EXPONENT_0] - tally[_SUBNORMAL]
    infs = tally[_POSINF] + tally[_NEGINF]
    counts[0] += tally[_SUBNORMAL]
    counts[ZEROS] += zeros
    counts[NANS] += tally[_NAN]
    counts[POSINFS] += tally[_POSINF]
    counts[NEGINFS] += tally[_NEGINF]
    counts[POW2S] += tally[_NO_MANTISSA] - zeros - infs + tally[_SUBNORMAL_POW2]
    counts[NUMEL] += n
    counts[CALLS] += 1
    smallest = _U32(tally[_SMALLEST])
    if smallest < _U32(_INF - _U32(1)):
        reals[AMIN] = min(reals[AMIN], as_float64(_U32(smallest + _U32(1))))
    reals[AMAX] = max(reals[AMAX], as_float64(_U32(tally[_LARGEST])))
    total, squares = sums_in(work)
    reals[SUM] += total
    reals[SUMSQ] += squares
