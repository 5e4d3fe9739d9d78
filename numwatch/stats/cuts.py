"""How many elements lie on either side of a cut, from the binade histogram.

A cut at a power of two falls between two binades and the count is exact, save for elements equal to
it; anywhere else it falls inside one binade, whose elements are then split by an estimate, bounded
by all or none of them, by amin and by amax.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from numwatch.errors import NumwatchError
from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.bounded import Bounded

if TYPE_CHECKING:
    from numwatch.stats.tensor_stats import TensorStats

STEEPEST = 4.0


def count_at_most(stats: TensorStats, cut: float, scale: float) -> Bounded:
    """Returns how many finite non-zero elements have |x| * scale <= cut.

    Args:
        stats: What the tensor looked like.
        cut: >= 0, finite.
        scale: The multiplier in force; the product is taken in FP64, as rounding takes it.

    Raises:
        NumwatchError: If `scale` is not positive and finite.
    """
    check_scale(scale)
    count = stats.nonzeros
    if count == 0 or cut == 0.0 or stats.amin * scale > cut:
        return Bounded.exactly(0)
    if stats.amax * scale <= cut:
        return Bounded.exactly(count)
    below, inside, binade, at_edge = _split(stats, cut, scale)
    # amin is at most the cut and amax is above it: one element at least on either side.
    if not inside:
        return Bounded.exactly(below)
    low = below + _surely_pow2(stats, binade, inside)
    if at_edge:
        high = below + min(stats.pow2s, inside)
        value = below + inside * stats.pow2s / count
    else:
        high = below + inside
        value = below + inside * _share_below(stats, binade, cut / scale)
    return _between(value, low, high, count)


def count_below(stats: TensorStats, cut: float, scale: float) -> Bounded:
    """Returns how many finite non-zero elements have |x| * scale < cut; see `count_at_most`."""
    check_scale(scale)
    count = stats.nonzeros
    if count == 0 or stats.amin * scale >= cut:
        return Bounded.exactly(0)
    if stats.amax * scale < cut:
        return Bounded.exactly(count)
    below, inside, binade, at_edge = _split(stats, cut, scale)
    if at_edge or not inside:
        return Bounded.exactly(below)
    low = below + _surely_pow2(stats, binade, inside)
    value = below + inside * _share_below(stats, binade, cut / scale)
    return _between(value, low, below + inside, count)


def check_scale(scale: float) -> None:
    """Raises NumwatchError unless `scale` is positive and finite."""
    if not 0.0 < scale < math.inf:
        raise NumwatchError(f"a scale is positive and finite; got {scale!r}")


def binade_ends(stats: TensorStats, binade: int) -> tuple[float, float]:
    """Returns the smallest and largest magnitude that elements of one of its binades can have."""
    low = stats.amin if binade == BINADE_MIN else max(math.ldexp(1.0, binade), stats.amin)
    high = stats.amax if binade == BINADE_MAX else min(math.ldexp(1.0, binade + 1), stats.amax)
    return low, high


def binade_slope(stats: TensorStats, binade: int) -> float:
    """Returns how steeply the density rises in a binade: ln of its growth per binade.

    From the neighbours' counts, or from the one neighbour there is; 0 is log-uniform. The outermost
    binades, which hold all beyond them too, are taken as log-uniform.
    """
    if binade in (BINADE_MIN, BINADE_MAX):
        return 0.0
    index = binade - stats.binade_first
    counts = (0, *stats.binades, 0)
    return density_slope(counts[index], counts[index + 1], counts[index + 2])


def density_slope(left: int, here: int, right: int) -> float:
    """Returns ln of the density's growth per bin, from a bin's count and its neighbours'."""
    if left and right:
        growth = math.log(right / left) / 2
    elif left:
        growth = math.log(here / left)
    elif right:
        growth = math.log(right / here)
    else:
        growth = 0.0
    return min(max(growth, -STEEPEST), STEEPEST)


def _between(value: float, low: int, high: int, count: int) -> Bounded:
    """A count with at least one element on either side of the cut.

    A record that nobody measured may have its amax or amin outside its own histogram.
    """
    low = max(low, 1)
    return Bounded.within(value, low, max(min(high, count - 1), low))


def _split(stats: TensorStats, cut: float, scale: float) -> tuple[int, int, int, bool]:
    """Where the cut falls: elements in binades below, in its binade, which, and if at its edge."""
    exponent = math.frexp(cut / scale)[1] - 1
    # The quotient is rounded, so that it may stand on the wrong side of a binade's edge.
    if math.ldexp(scale, exponent) > cut:
        exponent -= 1
    elif math.ldexp(scale, exponent + 1) <= cut:
        exponent += 1
    binade = min(max(exponent, BINADE_MIN), BINADE_MAX)
    at_edge = BINADE_MIN < exponent <= BINADE_MAX and math.ldexp(scale, exponent) == cut
    index = binade - stats.binade_first
    below = sum(stats.binades[: max(index, 0)])
    inside = stats.binades[index] if 0 <= index < len(stats.binades) else 0
    return below, inside, binade, at_edge


def _surely_pow2(stats: TensorStats, binade: int, inside: int) -> int:
    """How many of a binade's elements equal its lower edge at least."""
    if binade in (BINADE_MIN, BINADE_MAX):
        return 0
    return max(stats.pow2s - (stats.nonzeros - inside), 0)


def _share_below(stats: TensorStats, binade: int, cut: float) -> float:
    """Estimated share of a binade's elements below `cut`, which lies inside it."""
    low, high = binade_ends(stats, binade)
    if cut >= high or low >= high:
        return 1.0
    if cut <= low:
        return 0.0
    width = math.log2(high / low)
    part = math.log2(cut / low)
    slope = binade_slope(stats, binade)
    if abs(slope * width) < 1e-6:  # noqa: PLR2004
        return part / width
    return math.expm1(slope * part) / math.expm1(slope * width)
