"""The CPU loops that take an element at a time: FP64, float8 by its 256 codes, and amax alone."""

from typing import Any

import numpy as np

from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.dtypes import BitLayout
from numwatch.stats.jit import jit
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

_U64 = np.uint64
_CHUNK = 2048
_WAYS = 8

_MAGNITUDE64 = _U64(0x7FFF_FFFF_FFFF_FFFF)
_MANTISSA64 = _U64(0x000F_FFFF_FFFF_FFFF)
_INF64 = _U64(0x7FF0_0000_0000_0000)


def amax_loop(unsigned: Any, layout: BitLayout) -> Any:
    """Returns a loop over the patterns of a dtype: `bits` [n] -> (amax, nans, posinfs, neginfs).

    amax is the largest finite magnitude pattern. A second pass counts what is not finite, only
    where the first met any.

    Args:
        unsigned: numpy's unsigned integer type of the dtype's width.
        layout: How the dtype lies in it.
    """
    mask, largest, zero = (unsigned(n) for n in (layout.magnitude_mask, layout.largest, 0))
    sign = unsigned(layout.magnitude_mask + 1)
    # No magnitude beyond the largest is 0: nothing is infinite then.
    infinity = unsigned(layout.largest + 1 if layout.has_inf else 0)
    negative_zero_is_nan = layout.negative_zero_is_nan

    @jit
    def amax(bits: Any) -> Any:
        found = zero
        for i in range(bits.size):
            magnitude = unsigned(bits[i] & mask)
            if negative_zero_is_nan:
                magnitude = sign if bits[i] == sign else magnitude
            found = max(found, magnitude)
        nans = posinfs = neginfs = 0
        if found <= largest:
            return found, nans, posinfs, neginfs
        found = zero
        for i in range(bits.size):
            magnitude = unsigned(bits[i] & mask)
            if negative_zero_is_nan and bits[i] == sign:
                magnitude = sign
            if magnitude <= largest:
                found = max(found, magnitude)
            elif magnitude != infinity:
                nans += 1
            elif bits[i] == magnitude:
                posinfs += 1
            else:
                neginfs += 1
        return found, nans, posinfs, neginfs

    return amax


@jit
def sweep_float64(bits: Any, counts: Any, reals: Any) -> None:
    """Adds float64 elements, given as uint64 [n], to the row."""
    once = np.ones(_CHUNK, np.int64)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        _add_patterns(chunk, once[: chunk.size], counts, reals)
    counts[NUMEL] += bits.size


@jit
def sweep_float8(bits: Any, meanings: Any, counts: Any, reals: Any) -> None:
    """Adds float8 elements, given as uint8 [n], to the row.

    Args:
        bits: The elements.
        meanings: uint64 [256], the FP64 pattern that each code stands for.
        counts: The row's counts.
        reals: The row's reals.
    """
    histogram = np.zeros((_WAYS, 256), np.int64)
    for i in range(bits.size):
        histogram[_U64(i) & _U64(_WAYS - 1), _U64(bits[_U64(i)])] += 1
    _add_patterns(meanings, histogram.sum(axis=0), counts, reals)
    counts[NUMEL] += bits.size


@jit
def _add_patterns(patterns: Any, times: Any, counts: Any, reals: Any) -> None:
    """Adds FP64 patterns [n], each as often as `times` [n] says; numel is left alone."""
    floats = patterns.view(np.float64)
    # Non-negative floats order like their patterns, whatever the processor takes for zero.
    extremes = reals.view(np.uint64)
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
