"""The CPU loops that take an element at a time: FP64, float8 by its 256 codes, and amax alone."""

from typing import Any

import numpy as np

from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.dtypes import BitLayout
from numwatch.stats.jit import jit
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

_U64 = np.uint64
_CHUNK = 2048
_WAYS = 8

_MAGNITUDE64 = _U64(0x7FFF_FFFF_FFFF_FFFF)
_MANTISSA64_BITS = 52
_MANTISSA64 = _U64(0x000F_FFFF_FFFF_FFFF)
_INF64 = _U64(0x7FF0_0000_0000_0000)


def amax_loop(unsigned: Any, layout: BitLayout) -> Any:
    """Returns a loop that adds the amax, numel and non-finite counts of a dtype to rows.

    A second pass counts what is not finite, only where the first met any.

    Args:
        unsigned: numpy's unsigned integer type of the dtype's width.
        layout: How the dtype lies in it.
    """
    mask, largest, zero = (unsigned(n) for n in (layout.magnitude_mask, layout.largest, 0))
    sign = unsigned(layout.magnitude_mask + 1)
    # No magnitude beyond the largest is 0: nothing is infinite then.
    infinity = unsigned(layout.largest + 1 if layout.has_inf else 0)
    negative_zero_is_nan = layout.negative_zero_is_nan
    mantissa_bits, bias = layout.mantissa_bits, layout.bias

    @jit
    def amax(address: Any, numel: Any, counts: Any, reals: Any, _: Any) -> None:
        for k in range(tasks_in(numel, counts)):
            at, n, row_at, reals_at = task(k, address, numel, counts, reals)
            row = array_at(row_at, COUNTS, np.int64)
            bits = array_at(at, n, unsigned)
            found = zero
            for i in range(n):
                magnitude = unsigned(bits[i] & mask)
                if negative_zero_is_nan:
                    magnitude = sign if bits[i] == sign else magnitude
                found = max(found, magnitude)
            if found > largest:
                found = zero
                for i in range(n):
                    magnitude = unsigned(bits[i] & mask)
                    if negative_zero_is_nan:
                        magnitude = sign if bits[i] == sign else magnitude
                    if magnitude <= largest:
                        found = max(found, magnitude)
                    else:
                        kind = POSINFS if bits[i] == magnitude else NEGINFS
                        row[kind if magnitude == infinity else NANS] += 1
            row[NUMEL] += n
            row[CALLS] += 1
            _add_amax(np.int64(found), mantissa_bits, bias, reals_at)

    return amax


@jit
def _add_amax(magnitude: Any, mantissa_bits: Any, bias: Any, reals_at: Any) -> None:
    """Adds a finite magnitude pattern to a row as the FP64 pattern of the same value."""
    extremes = array_at(reals_at, REALS, np.int64)
    if mantissa_bits < _MANTISSA64_BITS:
        exponent = magnitude >> mantissa_bits
        mantissa = magnitude & ((1 << mantissa_bits) - 1)
        if exponent:
            mantissa |= 1 << mantissa_bits
        power = np.int64(max(exponent, 1) - bias - mantissa_bits + 1023) << 52
        magnitude = np.float64(mantissa * np.int64(power).view(np.float64)).view(np.int64)
    extremes[AMAX] = max(extremes[AMAX], magnitude)


@jit
def sweep_float64(address: Any, numel: Any, counts: Any, reals: Any, _: Any) -> None:
    """Adds float64 elements to rows; see `memory`."""
    once = np.ones(_CHUNK, np.int64)
    for k in range(tasks_in(numel, counts)):
        at, n, row_at, reals_at = task(k, address, numel, counts, reals)
        row = array_at(row_at, COUNTS, np.int64)
        for start in range(0, n, _CHUNK):
            chunk = array_at(at + 8 * start, min(_CHUNK, n - start), _U64)
            _add_patterns(chunk, once, row, reals_at)
        row[NUMEL] += n
        row[CALLS] += 1


@jit
def sweep_float8(address: Any, numel: Any, counts: Any, reals: Any, meanings: Any) -> None:
    """Adds float8 elements to rows; see `memory`.

    `meanings` leads to uint64 [256], the FP64 pattern that each code stands for.
    """
    codes = array_at(meanings, 256, _U64)
    histogram = np.zeros(_WAYS * 256, np.int64)
    times = np.empty(256, np.int64)
    for k in range(tasks_in(numel, counts)):
        at, n, row_at, reals_at = task(k, address, numel, counts, reals)
        row = array_at(row_at, COUNTS, np.int64)
        bits = array_at(at, n, np.uint8)
        for start in range(n):
            i = _U64(start)
            way = _U64(i & _U64(_WAYS - 1)) << _U64(8)
            histogram[way | _U64(bits[i])] += 1
        times[:] = 0
        for way in range(_WAYS):
            for code in range(256):
                times[code] += histogram[way * 256 + code]
        histogram[:] = 0
        _add_patterns(codes, times, row, reals_at)
        row[NUMEL] += n
        row[CALLS] += 1


@jit
def _add_patterns(patterns: Any, times: Any, counts: Any, reals_at: Any) -> None:
    """Adds FP64 patterns [n], each as often as `times` [n] says; numel is left alone."""
    floats = patterns.view(np.float64)
    reals = array_at(reals_at, REALS, np.float64)
    # Non-negative floats order like their patterns, whatever the processor takes for zero.
    extremes = array_at(reals_at, REALS, np.uint64)
    largest = extremes[AMAX]
    smallest = extremes[AMIN]
    total = 0.0
    squares = 0.0
    for i in range(patterns.size):
        n = times[i]
        magnitude = patterns[i] & _MAGNITUDE64
        if n == 0:
            continue
        if magnitude == _U64(0):
            counts[ZEROS] += n
        elif magnitude > _INF64:
            counts[NANS] += n
        elif magnitude == _INF64:
            counts[NEGINFS if patterns[i] > _MAGNITUDE64 else POSINFS] += n
        else:
            exponent = np.int64(magnitude >> _U64(52)) - 1023
            counts[min(max(exponent, BINADE_MIN), BINADE_MAX) - BINADE_MIN] += n
            # A subnormal has no leading bit: its mantissa alone must be a power of two.
            rest = magnitude & _MANTISSA64
            if magnitude <= _MANTISSA64:
                rest &= magnitude - _U64(1)
            if rest == _U64(0):
                counts[POW2S] += n
            largest = max(largest, magnitude)
            smallest = min(smallest, magnitude)
            total += n * floats[i]
            squares += n * floats[i] ** 2
    extremes[AMAX] = largest
    extremes[AMIN] = smallest
    reals[SUM] += total
    reals[SUMSQ] += squares
