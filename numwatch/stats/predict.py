"""Rounding errors predicted from the binade histogram, without the tensor.

Each binade is replaced by points spread over it as its neighbours' counts suggest, and these are
really rounded. The tensor must be finer than the format: of one that already is in that format
all errors are 0, which a histogram can't know.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from numwatch.formats import get_format
from numwatch.formats.nearest import round_nearest
from numwatch.stats.cuts import binade_ends, binade_slope, check_scale

if TYPE_CHECKING:
    from numwatch.stats.tensor_stats import AnyFormat, TensorStats

Floats = npt.NDArray[np.float64]

_POINTS = 256
SMALLEST_SUMSQ = 1e-280
"""Below it squares of FP64 elements have underflowed."""
_GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, modulo 1, spread out evenly."""


def median_relative_error(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> float:
    """Returns the median of |rounded - x| / |x| over the finite non-zero elements, predicted.

    A flushed element has error 1. NaN where there are no elements.
    """
    points, weights, errors = rounded_points(stats, fmt, scale)
    if not len(points):
        return math.nan
    return weighted_median(errors / points, weights)


def sqnr(stats: TensorStats, fmt: AnyFormat, scale: float = 1.0) -> float:
    """Returns 10 log10(sum x^2 / sum (rounded - x)^2) in dB, predicted.

    The signal is exact but for FP64 tensors whose squares FP64 can't hold. Dominated by the largest
    elements: it says nothing about a gradient's flushed tail. NaN where there are no elements.
    """
    points, weights, errors = rounded_points(stats, fmt, scale)
    if not len(points):
        return math.nan
    # Relative to amax, so that squares neither overflow nor underflow.
    with np.errstate(over="ignore"):  # E8M0 has no zero: its errors may be of any size.
        noise = float(np.sum(weights * (errors / stats.amax) ** 2))
    if SMALLEST_SUMSQ < stats.sumsq < math.inf:
        signal = stats.sumsq / stats.amax / stats.amax
    else:
        signal = float(np.sum(weights * (points / stats.amax) ** 2))
    if noise in (0.0, math.inf):
        return math.inf if noise == 0.0 else -math.inf
    return 10 * math.log10(signal / noise)


def weighted_median(values: Floats, weights: Floats) -> float:
    """Returns the least value that half of the weight is at or below; there is one at least."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, reached[-1] / 2)]])


@lru_cache(maxsize=4)  # one tensor's median and its SQNR; nobody writes to the arrays
def rounded_points(
    stats: TensorStats, fmt: AnyFormat, scale: float
) -> tuple[Floats, Floats, Floats]:
    """Magnitudes that stand for the tensor, how many elements each, and their rounding errors."""
    check_scale(scale)
    points, weights = spread_points(stats)
    rounded = round_nearest(points, get_format(fmt), scale)
    return points, weights, np.abs(rounded - points)


@lru_cache(maxsize=16)  # in one format after the other
def spread_points(stats: TensorStats) -> tuple[Floats, Floats]:
    """Magnitudes that stand for the tensor and how many elements each; amax is one of them.

    `_POINTS` to a filled binade, evenly spaced in log2. Where they start differs from binade to
    binade, or they would meet the same place of the format's grid in each.
    """
    if not stats.binades:
        return np.empty(0), np.empty(0)
    last = len(stats.binades) - 1
    others = [count - (i == last) for i, count in enumerate(stats.binades)]
    filled = [i for i, count in enumerate(others) if count]
    lines = np.array([_line(stats, i, others[i]) for i in filled]).reshape(-1, 4)
    low, width, slope, count = lines.T[:, :, None]
    starts = np.array(filled, np.float64)[:, None] * _GOLDEN % 1
    places = (np.arange(_POINTS) + starts) / _POINTS
    density = np.exp(slope * width * places)
    points = low * np.exp2(width * places)
    weights = count * density / density.sum(axis=1, keepdims=True)
    return np.append(stats.amax, points), np.append(1.0, weights)


def _line(stats: TensorStats, i: int, count: int) -> tuple[float, float, float, int]:
    """The low end of a filled binade, its width, the slope of its density, and its elements."""
    binade = stats.binade_first + i
    low, high = binade_ends(stats, binade)
    return low, math.log2(high / low), binade_slope(stats, binade), count
