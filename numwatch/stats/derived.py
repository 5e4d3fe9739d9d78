"""What follows from a tensor's statistics for a format F at a scale s: pure functions.

Shares are over the finite non-zero elements, 0 where there are none. They are exact for scales
that are powers of two, save where elements tie with a cut or F's largest value lies inside a
binade; then, and for any other scale, they are estimates with exact bounds. So they are where a
cut, divided by the scale, lies below 2^-126: one binade holds all that is smaller.

All magnitudes are judged before rounding and without their sign.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from numwatch.formats import get_format
from numwatch.stats.bounded import Bounded
from numwatch.stats.cuts import check_scale, count_at_most, count_below

if TYPE_CHECKING:
    from numwatch.stats.tensor_stats import AnyFormat, TensorStats


def flushed(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
    """Returns the share with |x| * s at or below half of F's smallest subnormal.

    Round-to-nearest-even sends these to zero, the tie too. Bounded, not exact, where that cut over
    s lies below 2^-126, as those of FP32 and BF16 do at scale 1.
    """
    return _share(stats, count_at_most(stats, get_format(fmt).flush_threshold, scale))


def underflow_pct(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
    """Returns 100 * (non-zeros that become zero) / numel, as Transformer Engine defines it."""
    count = count_at_most(stats, get_format(fmt).flush_threshold, scale)
    return count.times(100.0 / stats.numel) if stats.numel else count


def subnormal(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
    """Returns the share above the flush threshold and below F's smallest normal value.

    Before rounding: what rounds up to the smallest normal value counts. Bounded, not exact, where
    the cut lies below 2^-126, as those of FP32 and BF16 do at scale 1. 0 where F has no
    subnormals beside its normal values, as integers have none.
    """
    fmt = get_format(fmt)
    check_scale(scale)
    if fmt.is_integer or not fmt.has_subnormals:
        return Bounded.exactly(0.0)
    tiny = count_below(stats, fmt.smallest_normal, scale)
    lost = count_at_most(stats, fmt.flush_threshold, scale)
    count = Bounded.within(
        tiny.value - lost.value, max(tiny.low - lost.high, 0), tiny.high - lost.low
    )
    return _share(stats, count)


def saturated(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
    """Returns the share with |x| * s above F's largest value, before rounding.

    What rounding to nearest brings back to the largest value counts too: 449 is above E4M3's 448.
    So does the least value of a two's complement format, since a histogram has no signs: -128 is
    above INT8's 127.
    """
    count = count_at_most(stats, get_format(fmt).max, scale)
    total = stats.nonzeros
    above = Bounded(total - count.value, total - count.high, total - count.low)
    return _share(stats, above)


def headroom(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> float:
    """Returns log2(largest(F) / (amax * s)) in bits; negative beyond it, inf where amax is 0."""
    check_scale(scale)
    if stats.amax == 0.0:
        return math.inf
    # A difference of logarithms, since the product may leave FP64's range.
    return math.log2(get_format(fmt).max) - math.log2(stats.amax) - math.log2(scale)


def spread(stats: TensorStats) -> float:
    """Returns the binades between the 0.1 % and 99.9 % points of the finite non-zero magnitudes.

    Within a binade the elements are taken as log-uniform. 0.0 where there are none.
    """
    return _point(stats, 0.999) - _point(stats, 0.001)


def _point(stats: TensorStats, share: float) -> float:
    """log2 of the magnitude that this share of the elements lies below."""
    wanted = share * stats.nonzeros
    for binade, count in enumerate(stats.binades, stats.binade_first):
        if count and wanted <= count:
            return binade + wanted / count
        wanted -= count
    return 0.0


def _share(stats: TensorStats, count: Bounded) -> Bounded:
    total = stats.nonzeros
    if not total:
        return Bounded.exactly(0.0)
    # Not `times(1 / total)`: total / total must be 1.
    return Bounded(count.value / total, count.low / total, count.high / total)
