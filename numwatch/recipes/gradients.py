"""How many of a slot's gradient elements a format would flush at other loss scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numwatch.formats import Format, get_format
from numwatch.stats import Bounded, TensorStats
from numwatch.stats.cuts import count_at_most, count_below
from numwatch.stats.estimate import estimate_lost

Floats = npt.NDArray[np.float64]

_NONE = Bounded.exactly(0.0)
_FP32 = get_format("fp32")


@dataclass(frozen=True)
class GradientGroup:
    """What was seen of one gradient at one loss scale.

    Attributes:
        slot: Name of the slot.
        loss_scale: The scale its elements were multiplied by.
        stats: Statistics of the elements as seen, so still multiplied by it.
        rounded: Whether the tensor was in the format already, so that its zeros hold what the
            format had flushed by then.
    """

    slot: str
    loss_scale: float
    stats: TensorStats
    rounded: bool

    @property
    def usable(self) -> bool:
        """Whether it tells anything: a scale of 0, inf or NaN leaves nothing to tell from.

        Nor does one that FP32 does not hold: no scaler has it, and its ratio to another overflows.
        """
        return _FP32.smallest_subnormal <= self.loss_scale <= _FP32.max


@dataclass(frozen=True)
class Tally:
    """Elements flushed at each of K scales, of how many; each as best estimate, low and high.

    Tallies add up element by element.

    Attributes:
        flushed: FP64 [K, 3].
        elements: FP64 [3], the elements that are not zero before rounding.
        overflows: Bool [K], whether the largest magnitude rounds to more than the format holds.
    """

    flushed: Floats
    elements: Floats
    overflows: npt.NDArray[np.bool_]

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.flushed + other.flushed,
            self.elements + other.elements,
            self.overflows | other.overflows,
        )

    @property
    def shares(self) -> Floats:
        """The shares flushed, FP64 [K, 3]; 0 where there is no element."""
        shares: Floats = self.flushed / np.maximum(self.elements, 1.0)
        return shares


def tally(group: GradientGroup, fmt: Format, scales: Sequence[float]) -> Tally:
    """Returns what `fmt` would make of a usable group at each loss scale.

    Of a tensor that was in the format already the elements lost before are estimated. Its bounds
    are honest about that: low has every zero a zero from the start, high every zero a lost one.
    """
    stats = group.stats
    factors = [scale / group.loss_scale for scale in scales]
    if group.rounded:
        flushed, lost = _flushed_of_rounded(stats, fmt, factors)
        elements = stats.nonzeros + np.array([lost, 0.0, stats.zeros])
    else:
        counts = [count_at_most(stats, fmt.flush_threshold, factor) for factor in factors]
        flushed = np.array([(count.value, count.low, count.high) for count in counts])
        elements = np.full(3, float(stats.nonzeros))
    return Tally(flushed, elements, _overflows(stats, fmt, np.array(factors)))


def _flushed_of_rounded(
    stats: TensorStats, fmt: Format, factors: Sequence[float]
) -> tuple[Floats, float]:
    """Elements flushed at each factor [K, 3], and how many were before the tensor was seen."""
    higher = [factor for factor in factors if factor > 1.0]
    lost, *still_lost = estimate_lost(stats, fmt, [1.0, *higher])
    gone, cut = iter(still_lost), fmt.flush_threshold
    rows = []
    for factor in factors:
        before = next(gone) if factor > 1.0 else lost
        flushes = factor < 1.0 and stats.amin * factor <= cut
        seen = _seen(stats, fmt, factor, cut) if flushes else _NONE
        rows.append((seen.value + before.value, seen.low, seen.high + before.high))
    return np.array(rows), lost.value


def _seen(stats: TensorStats, fmt: Format, factor: float, cut: float) -> Bounded:
    """Elements not flushed yet that are at a factor which takes amin to the cut or below."""
    if stats.amax * factor < cut:
        return Bounded.exactly(float(stats.nonzeros))
    below, at_most = count_below(stats, cut, factor), count_at_most(stats, cut, factor)
    # What was rounded onto the cut had been on either side of it.
    halfway = below.value + _on_the_cut(stats, fmt, cut / factor) / 2
    return Bounded.within(halfway, below.low, at_most.high)


def _on_the_cut(stats: TensorStats, fmt: Format, cut: float) -> float:
    """Elements expected to equal `cut`, a magnitude inside a binade or a power of two."""
    fraction, exponent = math.frexp(cut)
    index = exponent - 1 - stats.binade_first
    if fraction != 0.5 or not 0 <= index < len(stats.binades):  # noqa: PLR2004 - a power of two
        return 0.0
    values_in_binade = min(cut / fmt.smallest_subnormal, 2.0**fmt.mantissa_bits)
    return stats.binades[index] / max(values_in_binade, 1.0)


def _overflows(stats: TensorStats, fmt: Format, factors: Floats) -> npt.NDArray[np.bool_]:
    """Whether amax rounds to more than the largest value; FP16 does so from 65520 on.

    A tensor with infinities overflowed at the scale it was seen at, and would at any higher one.
    """
    step = math.ldexp(1.0, fmt.emax - fmt.mantissa_bits)
    with np.errstate(over="ignore"):
        overflows: npt.NDArray[np.bool_] = np.rint(stats.amax * factors / step) > fmt.max / step
    if stats.posinfs or stats.neginfs:
        overflows |= factors >= 1.0
    return overflows
