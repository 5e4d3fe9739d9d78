"""The CPU loops over FP32, BF16 and FP16: one pass over the memory, a chunk at a time.

All three are read as FP32 bit patterns, chunk by chunk in the first-level cache,
where three loops go over each chunk: a histogram of the exponent field, extremes and powers of two,
sums in FP64. Chunks with FP32 subnormals or non-finite values, both rare, take a slower loop
instead of the sums. Whatever depends on subnormals is done on integers, since the processor may
take them for zero.
"""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit, jit_sum
from numwatch.stats.layout import (
    AMAX,
    AMIN,
    NANS,
    NEGINFS,
    NUMEL,
    POSINFS,
    POW2S,
    SUM,
    SUMSQ,
    ZEROS,
)

# numba turns uint32 arithmetic into 64 bits where it isn't told otherwise, hence all the casts.
_U32 = np.uint32
_U64 = np.uint64

_CHUNK = 2048
_WAYS = 8
"""Private histograms: neighbours that share an exponent would wait for each other in one."""

_MAGNITUDE = _U32(0x7FFF_FFFF)
_MANTISSA = _U32(0x007F_FFFF)
_INF = _U32(0x7F80_0000)
_SUBNORMAL_STEP = 2.0**-149

# Columns of a call's own tally: what the exponent histogram does not tell apart.
_NAN, _POSINF, _NEGINF, _SUBNORMAL, _SUBNORMAL_POW2, _NO_MANTISSA = range(6)


@jit
def sweep_float32(bits: Any, counts: Any, reals: Any) -> None:
    """Adds float32 elements, given as uint32 [n], to the row [COUNTS] and [REALS]."""
    histogram = np.zeros(_WAYS * 256, np.uint32)
    tally = np.zeros(6, np.int64)
    floats = bits.view(np.float32)
    for start in range(0, bits.size, _CHUNK):
        end = start + _CHUNK
        _add_chunk(bits[start:end], floats[start:end], histogram, tally, reals)
    _add_counts(bits.size, histogram, tally, counts)


@jit
def sweep_bfloat16(bits: Any, counts: Any, reals: Any) -> None:
    """Adds bfloat16 elements, given as uint16 [n], to the row."""
    histogram = np.zeros(_WAYS * 256, np.uint32)
    tally = np.zeros(6, np.int64)
    buffer = np.empty(_CHUNK, np.uint32)
    floats = buffer.view(np.float32)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        for i in range(chunk.size):
            buffer[i] = _U32(chunk[i]) << _U32(16)
        _add_chunk(buffer[: chunk.size], floats[: chunk.size], histogram, tally, reals)
    _add_counts(bits.size, histogram, tally, counts)


@jit
def sweep_float16(bits: Any, counts: Any, reals: Any) -> None:
    """Adds float16 elements, given as uint16 [n], to the row."""
    histogram = np.zeros(_WAYS * 256, np.uint32)
    tally = np.zeros(6, np.int64)
    buffer = np.empty(_CHUNK, np.uint32)
    floats = buffer.view(np.float32)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        widen_float16(chunk, buffer)
        _add_chunk(buffer[: chunk.size], floats[: chunk.size], histogram, tally, reals)
    _add_counts(bits.size, histogram, tally, counts)


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
def _add_chunk(chunk: Any, floats: Any, histogram: Any, tally: Any, reals: Any) -> None:
    _count_exponents(chunk, histogram)
    largest, smallest, no_mantissa = _extremes(chunk)
    tally[_NO_MANTISSA] += no_mantissa
    # `smallest` is one less than the smallest non-zero magnitude; all ones where there is none.
    if largest < _INF and smallest >= _MANTISSA:
        total, squares = _sums(floats)
    else:
        largest, total, squares = _add_specials(chunk, floats, tally)
    if smallest < _U32(_INF - _U32(1)):
        reals[AMIN] = min(reals[AMIN], as_float64(_U32(smallest + _U32(1))))
    reals[AMAX] = max(reals[AMAX], as_float64(largest))
    reals[SUM] += total
    reals[SUMSQ] += squares


@jit
def _count_exponents(chunk: Any, histogram: Any) -> None:
    shift = _U32(23)
    mask = _U32(0xFF)
    one = _U32(1)
    whole = chunk.size - chunk.size % _WAYS
    for start in range(0, whole, _WAYS):
        i = _U64(start)
        e0 = chunk[i] >> shift & mask
        e1 = chunk[i + _U64(1)] >> shift & mask
        e2 = chunk[i + _U64(2)] >> shift & mask
        e3 = chunk[i + _U64(3)] >> shift & mask
        e4 = chunk[i + _U64(4)] >> shift & mask
        e5 = chunk[i + _U64(5)] >> shift & mask
        e6 = chunk[i + _U64(6)] >> shift & mask
        e7 = chunk[i + _U64(7)] >> shift & mask
        histogram[e0] += one
        histogram[e1 + _U64(0x100)] += one
        histogram[e2 + _U64(0x200)] += one
        histogram[e3 + _U64(0x300)] += one
        histogram[e4 + _U64(0x400)] += one
        histogram[e5 + _U64(0x500)] += one
        histogram[e6 + _U64(0x600)] += one
        histogram[e7 + _U64(0x700)] += one
    for start in range(whole, chunk.size):
        histogram[chunk[_U64(start)] >> shift & mask] += one


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
def _add_specials(chunk: Any, floats: Any, tally: Any) -> Any:
    """Counts what is subnormal or not finite; returns amax and the sums of the finite elements."""
    largest = _U32(0)
    total = 0.0
    squares = 0.0
    for i in range(chunk.size):
        magnitude = _U32(chunk[i] & _MAGNITUDE)
        negative = chunk[i] > _MAGNITUDE
        if magnitude >= _INF:
            tally[_NAN if magnitude > _INF else _NEGINF if negative else _POSINF] += 1
            continue
        largest = max(largest, magnitude)
        value = np.float64(floats[i])
        if _U32(0) < magnitude <= _MANTISSA:
            tally[_SUBNORMAL] += 1
            tally[_SUBNORMAL_POW2] += _U32(magnitude & _U32(magnitude - _U32(1))) == _U32(0)
            value = as_float64(magnitude)
            if negative:
                value = -value
        total += value
        squares += value * value
    return largest, total, squares


@jit
def as_float64(magnitude: Any) -> Any:
    """The value of an FP32 magnitude pattern, exactly."""
    if magnitude > _MANTISSA:
        return np.float64(_U32(magnitude).view(np.float32))
    return np.float64(magnitude) * _SUBNORMAL_STEP


@jit
def _add_counts(numel: Any, histogram: Any, tally: Any, counts: Any) -> None:
    """Adds a call's exponent counts and tally to the row."""
    for exponent in range(1, 255):
        for way in range(_WAYS):
            counts[exponent] += histogram[way * 256 + exponent]
    zeros = -tally[_SUBNORMAL]
    for way in range(_WAYS):
        zeros += histogram[way * 256]
    infs = tally[_POSINF] + tally[_NEGINF]
    counts[0] += tally[_SUBNORMAL]
    counts[ZEROS] += zeros
    counts[NANS] += tally[_NAN]
    counts[POSINFS] += tally[_POSINF]
    counts[NEGINFS] += tally[_NEGINF]
    counts[POW2S] += tally[_NO_MANTISSA] - zeros - infs + tally[_SUBNORMAL_POW2]
    counts[NUMEL] += numel
