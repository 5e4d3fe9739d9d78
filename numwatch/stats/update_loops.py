"""The CPU loops over updates: all that `stats.updates` asks of an element, a chunk at a time.

Each loop over a chunk does one thing, in the first-level cache and in FP32, so that the compiler
takes as many elements at once as the processor can.
"""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit, jit_sum

_CHUNK = 512
_EXPONENT = np.uint32(0x7F80_0000)
_BF16_HALF, _BF16_LAST, _BF16_MASK = np.uint32(0x7FFF), np.uint32(1), np.uint32(0xFFFF_0000)
_BF16_BITS, _FP32_BITS = 7, 23

_WEIGHT, _DELTA, _LOW, _GOAL, _ARRIVED, _COPY = range(6)
"""Lines of the workspace. The copy makes room for the chance to be kept."""


@jit
def _binade(x: Any) -> Any:
    """2^floor(log2 |x|) of FP32 x, 0.0 of 0 and of subnormals."""
    exponent = np.uint32(np.float32(x).view(np.uint32) & _EXPONENT)
    return np.uint32(exponent).view(np.float32)


@jit
def _round(x: Any, mantissa_bits: Any, smallest_normal: Any, largest: Any) -> None:
    """Rounds a chunk to the format's grid, saturated: to nearest, ties to even."""
    if mantissa_bits == _FP32_BITS:
        for j in range(x.size):
            x[j] = min(max(x[j], -largest), largest)
    elif mantissa_bits == _BF16_BITS:
        for j in range(x.size):
            bits = np.float32(min(max(x[j], -largest), largest)).view(np.uint32)
            last = np.uint32(np.uint32(bits >> np.uint32(16)) & _BF16_LAST)
            bits = np.uint32(np.uint32(bits + _BF16_HALF) + last)
            x[j] = np.uint32(bits & _BF16_MASK).view(np.float32)
    else:
        # Added to this, x keeps no bit below the format's last. BF16's range would overflow.
        shift = np.float32(1.5 * 2.0 ** (_FP32_BITS - mantissa_bits))
        for j in range(x.size):
            inside = min(max(x[j], -largest), largest)
            added = max(_binade(inside), smallest_normal) * shift
            x[j] = (inside + added) - added


@jit
def _prepare(before: Any, intended: Any, applied: Any, scale: Any, work: Any) -> None:
    """Weights, updates and scaled weights; what is not finite is a weight without an update."""
    zero, n = np.float32(0.0), before.size
    weights, deltas, scaled = work[_WEIGHT, :n], work[_DELTA, :n], work[_LOW, :n]
    for j in range(before.size):
        weight, delta = before[j], intended[j]
        # NaN where one of them is not finite.
        finite = (weight - weight) + (delta - delta) == zero
        weights[j] = weight if finite else zero
        deltas[j] = delta if finite else zero
    for j in range(applied.size):
        finite = applied[j] - applied[j] == zero
        weights[j] = weights[j] if finite else zero
        deltas[j] = deltas[j] if finite else zero
    for j in range(before.size):
        scaled[j] = weights[j] * scale


@jit
def _move(work: Any, n: Any, scale: Any) -> None:
    """Adds the updates, in FP32 as training does: to the rounded weights, and to the weights."""
    weights, deltas, lows = work[_WEIGHT, :n], work[_DELTA, :n], work[_LOW, :n]
    goals, arrived, copies = work[_GOAL, :n], work[_ARRIVED, :n], work[_COPY, :n]
    for j in range(n):
        goals[j] = lows[j] + deltas[j] * scale
        arrived[j] = goals[j]
        copies[j] = (weights[j] + deltas[j]) * scale


@jit
def _arrive(low: Any, applied: Any, arrived: Any) -> None:
    """Puts what arrived where the rounded goal was."""
    zero = np.float32(0.0)
    for j in range(low.size):
        arrived[j] -= low[j]
    for j in range(applied.size):
        arrived[j] = applied[j] if applied[j] - applied[j] == zero else zero


@jit
def _add_counts(
    work: Any, n: Any, mantissa_bits: Any, smallest_normal: Any, largest: Any, sums: Any
) -> None:
    """Counts a chunk's updates, and leaves the chance of each to be kept where its copy was."""
    zero, one = np.float32(0.0), np.float32(1.0)
    steps = np.float32(2.0**mantissa_bits)
    counted = swallowed = deferred = np.int32(0)
    deltas, lows, goals = work[_DELTA, :n], work[_LOW, :n], work[_GOAL, :n]
    arrived, copies = work[_ARRIVED, :n], work[_COPY, :n]
    for j in range(n):
        low, is_counted = lows[j], deltas[j] != zero
        goal = min(max(goals[j], -largest), largest)
        lower = max(min(_binade(low), _binade(goal)), smallest_normal)
        is_swallowed = is_counted & (arrived[j] == zero)
        counted += np.int32(is_counted)
        swallowed += np.int32(is_swallowed)
        deferred += np.int32(is_counted & (copies[j] == low))
        chance = min(abs(goal - low) * steps / lower, one)
        copies[j] = chance if is_swallowed else zero
    sums[0] += counted
    sums[1] += swallowed
    sums[3] += deferred


@jit_sum
def _add_sums(work: Any, n: Any, sums: Any) -> None:
    """Adds a chunk's chances, and products of its weights and updates."""
    weights, deltas = work[_WEIGHT, :n], work[_DELTA, :n]
    arrived, chances = work[_ARRIVED, :n], work[_COPY, :n]
    kept = dot = delta_sq = arrived_sq = weight_sq = 0.0
    for j in range(n):
        weight, delta, came = np.float64(weights[j]), np.float64(deltas[j]), np.float64(arrived[j])
        kept += np.float64(chances[j])
        dot += came * delta
        delta_sq += delta * delta
        arrived_sq += came * came
        weight_sq += weight * weight
    sums[2] += kept
    sums[4] += dot
    sums[5] += delta_sq
    sums[6] += arrived_sq
    sums[7] += weight_sq


@jit
def sweep_updates(
    before: Any,
    intended: Any,
    applied: Any,
    scales: Any,
    mantissa_bits: Any,
    smallest_normal: Any,
    largest: Any,
    figures: Any,
) -> None:
    """Adds each parameter's updates to its row of figures; see `stats.updates.swallowing`.

    Args:
        before: float32 [k, n].
        intended: float32 [k, n].
        applied: float32 [k, n], or [k, 0] where the question is what would happen.
        scales: float32 [k].
        mantissa_bits: Of the format, without the hidden one; 7 means BF16.
        smallest_normal: Of the format.
        largest: Of the format.
        figures: float64 [k, 8], zeros; columns are `stats.updates.FIGURES`, but for what those say
            of `applied`: `deferred` is of what would happen, `applied_sq` of what arrived, and the
            latter and `delta_dot` are multiplied by the scale.
    """
    least, most = np.float32(smallest_normal), np.float32(largest)
    work = np.empty((6, _CHUNK), np.float32)
    for i in range(before.shape[0]):
        scale = scales[i]
        for start in range(0, before.shape[1], _CHUNK):
            end = min(start + _CHUNK, before.shape[1])
            n = end - start
            really = applied[i, start:end]
            _prepare(before[i, start:end], intended[i, start:end], really, scale, work)
            low, arrived, copy = work[_LOW, :n], work[_ARRIVED, :n], work[_COPY, :n]
            _round(low, mantissa_bits, least, most)
            _move(work, n, scale)
            _round(arrived, mantissa_bits, least, most)
            _round(copy, mantissa_bits, least, most)
            _arrive(low, really, arrived)
            _add_counts(work, n, mantissa_bits, least, most, figures[i])
            _add_sums(work, n, figures[i])
