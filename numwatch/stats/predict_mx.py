"""What an MX format would do to a tensor, from its block counts: shares with exact bounds.

With amax = M 2^E the block's scale is 2^(E - emax + c), the rule choosing c, 0 or 1, by the
mantissa M alone. So an element is flushed from a depth on that only c changes, and saturated where
c is 0, it stands in the amax's own binade and its mantissa is above the largest value's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from numwatch.formats.mx_exponents import mx_exponents
from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.block_layout import CLASSES
from numwatch.stats.bounded import Bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numwatch.formats import Format, ScaleRule
    from numwatch.stats.blocks import BlockHistogram
    from numwatch.stats.tensor_stats import TensorStats

MANTISSAS = (1.0, 1.5, 1.75, 1.875, 2.0)
"""Class k of mantissas is (MANTISSAS[k - 1], MANTISSAS[k]], 2 left out; class 0 is 1 alone."""
_POINTS = 256


@dataclass(frozen=True)
class Raise:
    """By how many binades a rule lifts the scale of blocks of one class, against `floor`.

    Attributes:
        low: The least c in the class.
        high: The largest.
        share: Share of log-uniform mantissas of the class with c = 1.
    """

    low: int
    high: int
    share: float


@cache
def raises(element: Format, rule: ScaleRule) -> tuple[Raise, ...]:
    """Returns how each class of mantissas lifts the scale."""
    found = []
    for k in range(CLASSES):
        low = math.nextafter(MANTISSAS[k - 1], 2.0) if k else 1.0
        high = math.nextafter(2.0, 1.0) if k == CLASSES - 1 else MANTISSAS[k]
        amaxes = np.geomspace(low, high, _POINTS).clip(low, high)
        amaxes[0], amaxes[-1] = low, high
        lifts = mx_exponents(amaxes, element, rule) + element.emax
        found.append(Raise(int(lifts[0]), int(lifts[-1]), float(lifts.mean())))
    return tuple(found)


def mx_shares(
    stats: TensorStats, blocks: BlockHistogram, element: Format, rule: ScaleRule
) -> tuple[Bounded, Bounded]:
    """Returns the shares that become zero, and that lie above the largest value before rounding.

    Over the elements counted. Both are exact, ties included, under `floor`, `ceil` and `rceil` for
    floating elements: their cuts between mantissas are those the classes are made of. Bounded are
    `even`, integers, and blocks whose cut lies below 2^-126.
    """
    # Half the smallest value, in binades below the scale that takes 2^E to 2^emax.
    depth = element.emax - exponent(element.flush_threshold)
    # Exponents of scales end at -127, which lifts small ones, and at 127, which clips large ones.
    tiny = _elements_at(blocks, range(BINADE_MIN, depth + BINADE_MIN + 1))
    huge = 0
    if element.emax < 1 or stats.amax >= math.ldexp(1.0, BINADE_MAX + 1):
        huge = _elements_at(blocks, range(BINADE_MAX, BINADE_MAX + 1))
    lifts = raises(element, rule)
    flushed = [flushed_by(own, depth, lift) for own, lift in zip(blocks.below, lifts, strict=True)]
    saturated = [
        _saturated(own, element, lift) for own, lift in zip(blocks.tops, lifts, strict=True)
    ]
    total = blocks.nonzeros
    may_saturate = huge + (tiny if element.emax < 1 else 0)
    return (
        share_of(flushed, total, less=huge, more=tiny + huge),
        share_of(saturated, total, less=tiny + huge, more=may_saturate),
    )


def exponent(value: float) -> int:
    """Returns floor(log2 value)."""
    return math.frexp(value)[1] - 1


def flushed_by(below: Sequence[int], depth: int, lift: Raise) -> Bounded:
    """Returns how many elements of one class lie deeper than `depth` less the class's lift."""
    low, high = sum(below[depth + 1 - lift.low :]), sum(below[depth + 1 - lift.high :])
    return Bounded.within(low + (high - low) * lift.share, low, high)


def share_of(counts: Sequence[Bounded], total: int, *, less: int = 0, more: int = 0) -> Bounded:
    """Returns the sum of counts as a share of the total, so many less or more being possible."""
    if not total:
        return Bounded.exactly(0.0)
    low = max(sum(count.low for count in counts) - less, 0) / total
    high = min(sum(count.high for count in counts) + more, total) / total
    return Bounded.within(sum(count.value for count in counts) / total, low, high)


def _elements_at(blocks: BlockHistogram, binades: range) -> int:
    """Elements of the blocks whose amaxes stand in these binades."""
    counts = enumerate(blocks.elements_by_binade, blocks.amax_first)
    return sum(count for binade, count in counts if binade in binades)


def _saturated(tops: Sequence[int], element: Format, lift: Raise) -> Bounded:
    """How many elements in the binades of their block's amax are above the largest value."""
    largest = math.ldexp(element.max, -element.emax)
    low = high = value = 0.0
    for count, (start, end) in zip(tops, pairwise(MANTISSAS), strict=True):
        share = math.log(end / min(max(start, largest), end)) / math.log(end / start)
        low += count * (start >= largest) * (lift.high < 1)
        high += count * (end > largest) * (lift.low < 1)
        value += count * share * (1 - lift.share)
    return Bounded.within(value, low, high)
