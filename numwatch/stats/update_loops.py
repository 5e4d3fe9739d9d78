"""The CPU loops over updates: all that `stats.updates` asks of an element, a chunk at a time.

One loop rounds, one adds up, each in the first-level cache and free to take several elements at
once. Rounding works in FP64: what 1.5 * 2^(52 - mantissa bits) times an element's binade is added
to and taken from again keeps no bit below the format's last, ties to even.
"""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit, jit_sum

_CHUNK = 1024
_EXPONENT = np.int64(0x7FF << 52)

_COUNTED, _SWALLOWED, _KEPT, _DEFERRED, _WEIGHT, _DELTA, _ARRIVED = range(7)


@jit
def _binade(x: Any) -> Any:
    """2^floor(log2 |x|), 0.0 of 0."""
    exponent = np.float64(x).view(np.int64) & _EXPONENT
    return np.int64(exponent).view(np.float64)


@jit
def _round(x: Any, shift: Any, smallest_normal: Any, largest: Any) -> Any:
    """FP64 x on the format's grid, saturated."""
    x = min(max(x, -largest), largest)
    added = max(_binade(x), smallest_normal) * shift
    return (x + added) - added


@jit
def _judge(
    before: Any,
    intended: Any,
    applied: Any,
    scale: Any,
    mantissa_bits: Any,
    smallest_normal: Any,
    largest: Any,
    chunk: Any,
) -> None:
    """Fills in a chunk's columns; what is not finite reads as a weight without an update."""
    shift = 1.5 * 2.0 ** (52 - mantissa_bits)
    steps = 2.0**mantissa_bits
    has_applied = applied.size > 0
    for j in range(before.size):
        weight, delta = before[j], intended[j]
        really = applied[j] if has_applied else np.float32(0.0)
        # NaN where one of them is not finite.
        finite = (weight - weight) + (delta - delta) + (really - really) == np.float32(0.0)
        weight = weight if finite else np.float32(0.0)
        delta = delta if finite else np.float32(0.0)
        really = really if finite else np.float32(0.0)
        low = _round(np.float64(weight * scale), shift, smallest_normal, largest)
        # FP32 sums, as training takes them.
        target = np.float64(np.float32(low) + delta * scale)
        arrived = _round(target, shift, smallest_normal, largest) - low
        arrived = np.float64(really) if has_applied else arrived
        goal = min(max(target, -largest), largest)
        lower = max(min(_binade(low), _binade(goal)), smallest_normal)
        moved = np.float64((weight + delta) * scale)
        copy = _round(moved, shift, smallest_normal, largest)
        counted = 1.0 if delta != 0 else 0.0
        swallowed = counted if arrived == 0 else 0.0
        chunk[_COUNTED, j] = counted
        chunk[_SWALLOWED, j] = swallowed
        chunk[_KEPT, j] = swallowed * min(abs(goal - low) * steps / lower, 1.0)
        chunk[_DEFERRED, j] = counted if copy == low else 0.0
        chunk[_WEIGHT, j] = np.float64(weight)
        chunk[_DELTA, j] = np.float64(delta)
        chunk[_ARRIVED, j] = arrived


@jit_sum
def _add(chunk: Any, n: Any, sums: Any) -> None:
    """Adds a chunk's columns, the last three as products, to the sums [8]."""
    counted = swallowed = kept = deferred = 0.0
    dot = delta_sq = arrived_sq = weight_sq = 0.0
    for j in range(n):
        counted += chunk[_COUNTED, j]
        swallowed += chunk[_SWALLOWED, j]
        kept += chunk[_KEPT, j]
        deferred += chunk[_DEFERRED, j]
        dot += chunk[_ARRIVED, j] * chunk[_DELTA, j]
        delta_sq += chunk[_DELTA, j] * chunk[_DELTA, j]
        arrived_sq += chunk[_ARRIVED, j] * chunk[_ARRIVED, j]
        weight_sq += chunk[_WEIGHT, j] * chunk[_WEIGHT, j]
    found = (counted, swallowed, kept, deferred, dot, delta_sq, arrived_sq, weight_sq)
    for column in range(len(found)):
        sums[column] += found[column]


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
        mantissa_bits: Of the format, without the hidden one.
        smallest_normal: Of the format.
        largest: Of the format.
        figures: float64 [k, 8], zeros; columns are `stats.updates.FIGURES`, but for what those say
            of `applied`: `deferred` is of what would happen, `applied_sq` of what arrived, and the
            latter and `delta_dot` are multiplied by the scale.
    """
    chunk = np.empty((7, _CHUNK))
    for i in range(before.shape[0]):
        for start in range(0, before.shape[1], _CHUNK):
            end = min(start + _CHUNK, before.shape[1])
            _judge(
                before[i, start:end],
                intended[i, start:end],
                applied[i, start:end],
                scales[i],
                mantissa_bits,
                smallest_normal,
                largest,
                chunk,
            )
            _add(chunk, end - start, figures[i])
