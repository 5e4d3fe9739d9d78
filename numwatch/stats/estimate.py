"""What a tensor had lost before anyone could look, guessed from the shape of what is left.

A tensor that already is in a format holds zeros of two kinds: values that the format flushed, and
zeros that were zero before (ReLU, dropout, padding). The lower tail tells them apart: it is
extrapolated beyond the flush threshold, and what should lie there is taken out of the zeros.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from numwatch.formats import get_format
from numwatch.stats.bounded import Bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numwatch.formats import Format
    from numwatch.stats.tensor_stats import AnyFormat, TensorStats

Floats = npt.NDArray[np.float64]

_TAIL = 10
"""Binades of the tail that are fitted, at most."""
_PAST_MODE = 2
"""Binades fitted beyond the fullest one: enough to see the tail bend."""
_POINTS = 16
"""Quadrature points in a binade."""
_BELOW = 40
"""Binades below the flush threshold that are added up."""
_STEEPEST = math.log(2)
"""Where x itself has a density at 0, a binade holds half of what the next one holds, not less."""
_STEPS = 60
_CONVERGED = 1e-6
_LONGEST_STEP = 4.0
"""Scoring overshoots where it starts far off."""


def estimate_flushed(stats: TensorStats, fmt: AnyFormat) -> Bounded:
    """Returns the estimated share of the once non-zero elements that `fmt` has flushed already.

    The lower tail is fitted as a truncated normal in log2 |x| (its density there is the exponential
    of a concave parabola) by maximum likelihood on the binade counts, the edges of the binades
    being where rounding to `fmt` puts them, subnormal grid included. It is carried on from the
    lowest binade's own count, falling no faster than a factor of 2 a binade. Where nearly all is
    flushed too little is left to tell, and the estimate is too low.

    Args:
        stats: A tensor whose values all are in `fmt`, unscaled.
        fmt: The format it is in.

    Returns:
        The estimate; low is 0 (every zero was one before) and high zeros / (zeros + non-zeros).
        The estimate is 0 where the tail ends well above the threshold, or holds too little to say.
    """
    if not stats.zeros:
        return Bounded.exactly(0.0)
    total = stats.zeros + stats.nonzeros
    (lost,) = estimate_lost(stats, fmt)
    share = lost.value / (lost.value + stats.nonzeros or 1)
    return Bounded.within(share, 0.0, stats.zeros / total)


def estimate_lost(
    stats: TensorStats, fmt: AnyFormat, factors: Sequence[float] = (1.0,)
) -> tuple[Bounded, ...]:
    """Returns how many of a tensor's zeros `fmt` would have made at other scales.

    The same tail as in `estimate_flushed`, cut further down.

    Args:
        stats: A tensor whose values all are in `fmt`, unscaled.
        fmt: The format it is in.
        factors: How many times higher the tensor's scale would have been when it was rounded, each
            >= 1; at 1 the answer is what was really flushed.

    Returns:
        A count for each factor; low is 0 (every zero was one before) and high all zeros.
    """
    if not stats.zeros:
        return (Bounded.exactly(0.0),) * len(factors)
    fmt = get_format(fmt)
    expected, shares = _tail_below(stats, fmt, [-math.log2(factor) for factor in factors])
    lost = min(expected, stats.zeros)
    return tuple(Bounded.within(lost * share, 0.0, float(stats.zeros)) for share in shares)


def _tail_below(stats: TensorStats, fmt: Format, cuts: Sequence[float]) -> tuple[float, Floats]:
    """Elements that the fitted tail puts at or below the flush threshold.

    Returns:
        Their number, and which share of them lies below each cut, in binades from the threshold.
    """
    lowest = math.frexp(fmt.smallest_subnormal)[1] - 1
    counts = np.zeros(_TAIL)
    for binade, count in enumerate(stats.binades, stats.binade_first):
        if 0 <= binade - lowest < _TAIL:
            counts[binade - lowest] += count
    if not counts[0]:
        return 0.0, np.zeros(len(cuts))
    tail = counts[: int(counts.argmax()) + 1 + _PAST_MODE]
    edges = _log2_edges(fmt, lowest, len(tail))
    slope, curvature = _fit_parabola(edges, tail)
    # Steps of the logarithm on a fine grid, from far below up to the top of the lowest binade.
    grid = np.arange(-_BELOW, edges[1] - edges[0], 1 / _POINTS) + 0.5 / _POINTS
    rises = np.minimum(slope + 2 * curvature * grid, _STEEPEST) / _POINTS
    log_density = np.cumsum(rises)
    density = np.exp(log_density - log_density.max())
    inside = max(float(density[grid > 0].sum()), 1e-300)
    below = np.interp([0.0, *cuts], grid + 0.5 / _POINTS, np.cumsum(density), left=0.0)
    shares: Floats = below[1:] / max(below[0], 1e-300)
    return float(counts[0]) * float(below[0]) / inside, shares


def _midpoints(start: float, end: float) -> Floats:
    return start + (end - start) * (np.arange(_POINTS) + 0.5) / _POINTS


def _log2_edges(fmt: Format, lowest: int, n: int) -> Floats:
    """log2 of the n + 1 magnitudes at which rounding passes from one binade to the next."""
    edges = [math.log2(fmt.flush_threshold)]
    for binade in range(lowest, lowest + n):
        step = max(fmt.smallest_subnormal, math.ldexp(1.0, binade - fmt.mantissa_bits))
        edges.append(math.log2(math.ldexp(1.0, binade + 1) - step / 2))
    return np.array(edges)


def _fit_parabola(edges: Floats, counts: Floats) -> tuple[float, float]:
    """Fits ln density(z) = a + b z + c z^2, z from the lowest edge, to Poisson counts.

    Returns:
        b and c; c <= 0. (ln 2, 0), a density of x that is flat at 0, where fewer than three
        binades are filled.
    """
    if np.count_nonzero(counts) < 3:  # noqa: PLR2004 - a parabola has three parameters
        return _STEEPEST, 0.0
    length = edges[-1] - edges[0]
    z = np.stack([_midpoints(*ends) for ends in pairwise(edges)]) - edges[0]
    basis = np.stack([np.ones_like(z), z / length, (z / length) ** 2])
    fitted = _fit(basis, np.diff(edges), counts)
    if fitted[2] > 0:
        fitted = np.append(_fit(basis[:2], np.diff(edges), counts), 0.0)
    return float(fitted[1]) / length, float(fitted[2]) / length**2


def _fit(basis: Floats, widths: Floats, counts: Floats) -> Floats:
    """Parameters [k] of a log-linear density over basis [k, bins, points], by Fisher scoring."""
    parameters = np.zeros(len(basis))
    parameters[0] = math.log(counts.mean())
    for _ in range(_STEPS):
        density = np.exp(np.tensordot(parameters, basis, 1)) * widths[:, None] / _POINTS
        expected = density.sum(axis=1)
        # Gradients of ln(expected): what the basis is on average within each binade.
        slopes = (basis * density).sum(axis=2) / expected
        information = (slopes * expected) @ slopes.T + 1e-9 * np.eye(len(basis))
        step = np.linalg.solve(information, slopes @ (counts - expected))
        longest = float(np.abs(step).max())
        parameters += step / max(1.0, longest / _LONGEST_STEP)
        if longest < _CONVERGED:
            break
    return parameters
