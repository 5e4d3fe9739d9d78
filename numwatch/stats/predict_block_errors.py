"""Rounding errors of block formats, predicted from block counts without the tensor.

Each cell of the counts, a depth or a class of mantissas of the amax's own binade, is replaced by
points spread over it, and these are really rounded beside an amax of that class. How the elements
lie in the blocks of a class is taken to be the same whatever the binade of the amax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from numwatch.formats import get_block_format
from numwatch.formats.nearest import round_nearest
from numwatch.stats.block_layout import CLASSES
from numwatch.stats.cuts import density_slope
from numwatch.stats.predict import SMALLEST_SUMSQ, weighted_median
from numwatch.stats.predict_mx import MANTISSAS, raises
from numwatch.stats.predict_nvfp4 import tensor_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numwatch.formats import Format, ScaleRule
    from numwatch.stats.blocks import BlockHistogram
    from numwatch.stats.tensor_stats import TensorStats

Floats = npt.NDArray[np.float64]

_POINTS = 32
"""In a cell."""
_AMAXES = 8
"""Mantissas of amaxes in a class."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_NVFP4 = get_block_format("nvfp4")


@dataclass(frozen=True)
class Points:
    """Elements that stand for many, and what rounding makes of them.

    Attributes:
        x: Magnitudes [n], with a unit of their own.
        count: How many elements each stands for.
        error: |rounded - x|.
        relative: Whether the error goes with x [n]: it is rounded to so many bits, or flushed.
            Else it goes with the step between subnormals.
        power: Mean square of the unit, in squares of the tensor's highest binade.
    """

    x: Floats
    count: Floats
    error: Floats
    relative: npt.NDArray[np.bool_]
    power: float


def mx_points(blocks: BlockHistogram, element: Format, rule: ScaleRule) -> list[Points]:
    """Returns what an MX rule makes of the elements; the unit is the binade of a block's amax."""
    points = []
    for k, lift in enumerate(raises(element, rule)):
        x, count = _cells(blocks, k)
        for raised, share in ((0, 1 - lift.share), (1, lift.share)):
            if share and len(x):
                scale = math.ldexp(1.0, element.emax - raised)
                error = np.abs(round_nearest(x, element, scale) - x)
                relative = (x * scale >= element.smallest_normal) | (error == x)
                points.append(Points(x, count * share, error, relative, _power(blocks, k)))
    return points


def nvfp4_points(stats: TensorStats, blocks: BlockHistogram) -> list[Points]:
    """Returns what NVFP4 makes of the elements, vanishing blocks included."""
    scale = tensor_scale(stats) / _NVFP4.element.max
    points: list[Points] = []
    if not scale:
        return points
    for k in range(CLASSES):
        x, count = _cells(blocks, k, amaxes_apart=True)
        own = sum(blocks.elements[k])
        if not own:
            continue
        amaxes = _amaxes(k)
        per_amax = np.full(1, blocks.peaks[k])
        for unit, elements, power in _groups(blocks, k, scale):
            share = elements / own / len(amaxes)
            for amax in amaxes.tolist():
                here = np.append(np.minimum(x, amax), amax)
                error = np.abs(_through_nvfp4(here, amax, unit) - here)
                normal = amax * _NVFP4.element.smallest_normal / _NVFP4.element.max
                relative = (here >= normal) | (error == here)
                counts = np.concatenate([count, per_amax]) * share
                points.append(Points(here, counts, error, relative, power))
    return points


def sqnr_of(points: Sequence[Points], stats: TensorStats, blocks: BlockHistogram) -> float:
    """Returns the SQNR in dB; NaN where there is nothing.

    The signal is the tensor's own. That the points' differs tells how far blocks of high and of low
    amaxes are unlike, and noise that is relative to the elements is corrected by as much.
    """
    if not points:
        return math.nan
    signal = sum(part.power * float(np.sum(part.count * part.x**2)) for part in points)
    relative = fixed = 0.0
    for part in points:
        noise = part.power * part.count * part.error**2
        relative += float(noise[part.relative].sum())
        fixed += float(noise[~part.relative].sum())
    own = signal
    if SMALLEST_SUMSQ < stats.sumsq < math.inf:
        highest = blocks.amax_first + len(blocks.amaxes) - 1
        own = math.ldexp(stats.sumsq, -2 * highest)
    total = relative * own / signal + fixed
    return 10 * math.log10(own / total) if total else math.inf


def median_of(points: Sequence[Points]) -> float:
    """Returns the median of |rounded - x| / |x|; NaN where there is nothing."""
    if not points:
        return math.nan
    relative = np.concatenate([part.error / part.x for part in points])
    return weighted_median(relative, np.concatenate([part.count for part in points]))


def _cells(blocks: BlockHistogram, k: int, *, amaxes_apart: bool = False) -> tuple[Floats, Floats]:
    """Points and counts of the elements in blocks whose amax is of class k."""
    x, count = [np.empty(0)], [np.empty(0)]
    tops = list(blocks.tops[k])
    below = [*blocks.below[k], 0]
    if amaxes_apart and k:
        tops[k - 1] -= blocks.peaks[k]
    elif amaxes_apart and len(below) > 1:
        below[1] -= blocks.peaks[k]  # a power of two stands with the elements below it
    for n, (low, high) in zip(tops, pairwise(MANTISSAS), strict=True):
        if n:
            x.append(low * (high / low) ** _places(0))
            count.append(np.full(_POINTS, n / _POINTS))
    for depth in range(1, len(below) - 1):
        if below[depth]:
            places = _places(depth)
            slope = density_slope(below[depth + 1], below[depth], below[depth - 1])
            density = np.exp(slope * places)
            x.append(np.exp2(places - depth))
            count.append(below[depth] * density / density.sum())
    return np.concatenate(x), np.concatenate(count)


def _places(depth: int) -> Floats:
    """Places in (0, 1], differing from depth to depth lest all meet the same place of the grid."""
    places: Floats = (np.arange(_POINTS) + 1 - depth * _GOLDEN % 1) / _POINTS
    return places


def _power(blocks: BlockHistogram, k: int) -> float:
    """Mean of 4^E over the elements of a class, E counted from the tensor's highest binade."""
    elements = np.array(blocks.elements[k], np.float64)
    powers = _powers(len(elements))
    return float(elements @ powers / elements.sum()) if elements.any() else 0.0


def _powers(n: int) -> Floats:
    powers: Floats = np.exp2(np.maximum(2.0 * (np.arange(n) - n + 1), -1000.0))
    return powers


def _groups(blocks: BlockHistogram, k: int, scale: float) -> Iterator[tuple[float, int, float]]:
    """Binades of a class by what becomes of their scale: its unit, elements, mean power.

    All whose scale is normal are one group, for E4M3 has the same mantissas in each, and so are all
    whose scale is 0.
    """
    mantissa = math.frexp(scale)[0] * 2
    groups: dict[float, list[tuple[int, float]]] = {}
    powers = _powers(len(blocks.elements[k])).tolist()
    for i, elements in enumerate(blocks.elements[k]):
        unit = math.ldexp(scale, blocks.amax_first + i)
        if unit >= _NVFP4.scale.smallest_normal:
            unit = mantissa
        elif 2 * unit <= _NVFP4.scale.flush_threshold:
            unit = 0.0
        if elements:
            groups.setdefault(unit, []).append((elements, powers[i]))
    for unit, found in groups.items():
        total = sum(n for n, _ in found)
        yield unit, total, sum(n * power for n, power in found) / total


def _through_nvfp4(x: Floats, amax: float, unit: float) -> Floats:
    """What is left of magnitudes beside this amax; `unit` times it is the scale before rounding."""
    wanted = amax * unit
    scale = float(round_nearest(np.array([wanted]), _NVFP4.scale, 1.0)[0])
    if scale == 0.0:
        return np.zeros_like(x)
    return round_nearest(x, _NVFP4.element, _NVFP4.element.max / amax * wanted / scale)


def _amaxes(k: int) -> Floats:
    """Mantissas that stand for those of class k."""
    if k == 0:
        return np.array([1.0])
    low, high = MANTISSAS[k - 1], MANTISSAS[k]
    mantissas: Floats = low * (high / low) ** ((np.arange(_AMAXES) + 0.5) / _AMAXES)
    return mantissas
