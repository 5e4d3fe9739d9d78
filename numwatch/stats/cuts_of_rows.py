"""What a cut leaves on either side of it, for many histograms at once.

The same counts and bounds as `numwatch.stats.cuts.count_at_most`, row by row without a loop.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.cuts import STEEPEST
from numwatch.stats.histograms import Doubles, Histograms, Ints

Bools = npt.NDArray[np.bool_]


def shares_at_most(rows: Histograms, cut: float, scale: Doubles) -> Doubles:
    """Returns the share of each row's finite non-zero elements with |x| * scale <= cut.

    Args:
        rows: n rows.
        cut: > 0, finite.
        scale: Float64 [n], positive; what the elements as seen are to be multiplied by.

    Returns:
        Float64 [n, 3]: value, low, high. 0 of a row without such elements.
    """
    return _shares(_Cut(rows, cut, scale))


def _shares(at: _Cut) -> Doubles:
    low = at.below + at.surely_pow2
    edge_value = at.below + at.inside * at.rows.pow2s / np.maximum(at.total, 1)
    edge_high = at.below + np.minimum(at.rows.pow2s, at.inside)
    value = np.where(at.at_edge, edge_value, at.below + at.inside * at.share_below)
    high = np.where(at.at_edge, edge_high, at.below + at.inside)
    # One element at least lies on either side, or the row would be all or none below.
    low, high = np.maximum(low, 1), np.minimum(high, at.total - 1)
    counts = np.stack([np.clip(value, low, high), low, high], axis=1).astype(np.float64)
    counts[at.inside == 0] = at.below[at.inside == 0, None]
    counts[at.all] = at.total[at.all, None]
    counts[at.none] = 0.0
    shares: Doubles = counts / np.maximum(at.total, 1)[:, None]
    return shares


class _Cut:
    """Where a cut falls in each row.

    Attributes:
        total: Finite non-zero elements.
        none: Whether none is at most the cut.
        all: Whether all are.
        below: Elements in binades below the cut's.
        inside: Elements in its binade.
        at_edge: Whether the cut is that binade's lower edge.
        surely_pow2: Elements of the binade that equal its lower edge at least.
        share_below: Estimated share of the binade's elements below the cut.
    """

    def __init__(self, rows: Histograms, cut: float, scale: Doubles) -> None:
        self.rows = rows
        self._sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.counts)])
        self._length = np.diff(rows.ends)
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            quotient = cut / scale
            exponent = self._exponent(quotient, cut, scale)
            self.binade: Ints = np.clip(exponent, BINADE_MIN, BINADE_MAX)
            self.at_edge: Bools = (
                (exponent > BINADE_MIN)
                & (exponent <= BINADE_MAX)
                & (np.ldexp(scale, exponent) == cut)
            )
            index = self.binade - rows.first
            start = self._sums[rows.ends[:-1]]
            self.total: Ints = self._sums[rows.ends[1:]] - start
            # A product of non-zero numbers is not zero, though FP64 may round it there.
            self.none: Bools = (self.total == 0) | (rows.amin * scale > cut) | (cut <= 0)
            self.all: Bools = rows.amax * scale <= cut
            self.below: Ints = self._up_to(index) - start
            self.inside: Ints = self._count(index)
            outermost = (self.binade == BINADE_MIN) | (self.binade == BINADE_MAX)
            surely = np.maximum(rows.pow2s - (self.total - self.inside), 0)
            self.surely_pow2: Ints = np.where(outermost, 0, surely)
            slope = np.where(outermost, 0.0, self._slope(index))
            self.share_below: Doubles = self._share(quotient, slope)

    @staticmethod
    def _exponent(quotient: Doubles, cut: float, scale: Doubles) -> Ints:
        exponent = np.frexp(quotient)[1].astype(np.int32) - 1
        # The quotient is rounded, so that it may stand on the wrong side of a binade's edge.
        down = np.ldexp(scale, exponent) > cut
        up = ~down & (np.ldexp(scale, exponent + 1) <= cut)
        found: Ints = (exponent - down + up).astype(np.int64)
        return found

    def _up_to(self, index: Ints) -> Ints:
        sums: Ints = self._sums[self.rows.ends[:-1] + np.clip(index, 0, self._length)]
        return sums

    def _count(self, index: Ints) -> Ints:
        return self._up_to(index + 1) - self._up_to(index)

    def _slope(self, index: Ints) -> Doubles:
        left, here, right = (
            np.log(self._count(index + offset).astype(np.float64)) for offset in (-1, 0, 1)
        )
        rise = np.where(
            np.isfinite(left),
            np.where(np.isfinite(right), (right - left) / 2, here - left),
            np.where(np.isfinite(right), right - here, 0.0),
        )
        slope: Doubles = np.clip(np.nan_to_num(rise), -STEEPEST, STEEPEST)
        return slope

    def _share(self, cut: Doubles, slope: Doubles) -> Doubles:
        low = np.maximum(np.ldexp(1.0, self.binade.astype(np.int32)), self.rows.amin)
        low = np.where(self.binade == BINADE_MIN, self.rows.amin, low)
        top = np.ldexp(1.0, np.minimum(self.binade + 1, 1023).astype(np.int32))
        high = np.where(self.binade == BINADE_MAX, self.rows.amax, np.minimum(top, self.rows.amax))
        width, part = np.log2(high / low), np.log2(cut / low)
        flat = np.abs(slope * width) < 1e-6  # noqa: PLR2004  # as stats.cuts has it
        curved = np.expm1(slope * part) / np.where(flat, 1.0, np.expm1(slope * width))
        share = np.where(flat, part / width, curved)
        share = np.where(cut <= low, 0.0, share)
        return np.where((cut >= high) | (low >= high), 1.0, share)
