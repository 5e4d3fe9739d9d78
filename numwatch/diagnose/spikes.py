"""Spikes in a scalar's course: values far above what it was a while ago, and whether they last."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numwatch.diagnose.evidence import Doubles, Ints
from numwatch.diagnose.thresholds import (
    CONFIRMATIONS,
    RECOVERED_SCORE,
    SPIKE_HORIZON,
    SPIKE_SCORE,
    SPIKE_SPREAD,
    SPIKE_WINDOW,
)

# The distance between the 10 % and the 90 % point of a normal distribution, in its deviations.
_TEN_TO_NINETY = 2.5631
_PIECE = 8192
LEVEL = 8
"""Values whose median is called a level."""


@dataclass(frozen=True)
class Spike:
    """A value far above those before it.

    Attributes:
        step: Its step.
        value: The value.
        score: How many spreads it lies above the median of the values before it.
        usual: That median.
        high: Of this value and the seven after it, those as far above.
        lasting: Whether the values after it have not come back, or there are none.
        peak: The largest value until it came back, or of the next few.
    """

    step: int
    value: float
    score: float
    usual: float
    high: int
    lasting: bool
    peak: float

    @property
    def confirmed(self) -> bool:
        """Whether it is more than a single bad batch."""
        return self.lasting or self.high >= CONFIRMATIONS


def spikes(steps: Ints, values: Doubles, *, warm_up: int, rise: float = 0.0) -> list[Spike]:
    """Returns the spikes of a course, by rising step.

    A value's score is its distance from the median of the 128 finite values before it, in spreads:
    the distance of their 10 % and 90 % points scaled to a normal's deviation, at least a hundredth
    of the median's magnitude. NaN and infinities are left out, so they end no statistic. What
    follows within `SPIKE_HORIZON` values of a spike, or until it has come back, belongs to it.

    Args:
        steps: Int [n], rising.
        values: Float [n].
        warm_up: Finite values that must have come before.
        rise: Least distance from the median, in the values' unit.
    """
    finite = np.isfinite(values)
    ended = np.flatnonzero(~finite)
    places = np.flatnonzero(finite)
    known = values[finite]
    usual, spread = past(known, warm_up)
    with np.errstate(invalid="ignore", over="ignore"):
        high = (known - usual > SPIKE_SCORE * spread) & (known - usual >= rise)
    found = []
    after = 0
    for i in np.flatnonzero(high).tolist():
        if i < after:
            continue
        after = i + SPIKE_HORIZON
        center, width = float(usual[i]), float(spread[i])
        next_ones = known[i : i + SPIKE_HORIZON]
        settled = known[i + 1 : i + 1 + 2 * LEVEL][-LEVEL:]
        broken = bool(((ended > places[i]) & (ended <= places[i] + SPIKE_HORIZON)).any())
        back = len(settled) >= CONFIRMATIONS and np.median(settled) <= center + (
            RECOVERED_SCORE * width
        )
        if not broken and not back:
            later = np.flatnonzero(known[after:] <= center + RECOVERED_SCORE * width)
            after = after + int(later[0]) if len(later) else len(known)
        found.append(
            Spike(
                step=int(steps[places[i]]),
                value=float(known[i]),
                score=float((known[i] - center) / width),
                usual=center,
                high=int((next_ones - center > SPIKE_SCORE * width).sum()),
                lasting=broken or not back,
                peak=float(next_ones.max()),
            )
        )
    return found


def past(values: Doubles, warm_up: int) -> tuple[Doubles, Doubles]:
    """Returns median and spread of the 128 values before each one; NaN for the first `warm_up`.

    Args:
        values: Float [n], all finite.
        warm_up: Values that must have come before, at most 128.
    """
    n = len(values)
    median, spread = np.full(n, np.nan), np.full(n, np.nan)
    for i in range(warm_up, min(n, SPIKE_WINDOW)):
        median[i], spread[i] = (float(x[0]) for x in _middle(values[None, :i]))
    if n > SPIKE_WINDOW:
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], SPIKE_WINDOW)
        for start in range(0, len(windows), _PIECE):
            piece = slice(SPIKE_WINDOW + start, SPIKE_WINDOW + start + _PIECE)
            median[piece], spread[piece] = _middle(windows[start : start + _PIECE])
    return median, spread


def level(values: npt.NDArray[np.floating]) -> float:
    """Returns the median of the last finite values; NaN of none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite[-LEVEL:])) if len(finite) else float("nan")


def first_level(values: npt.NDArray[np.floating]) -> float:
    """Returns the median of the first three finite values; NaN of none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite[:CONFIRMATIONS])) if len(finite) else float("nan")


def _middle(windows: npt.NDArray[np.float64]) -> tuple[Doubles, Doubles]:
    size = windows.shape[1]
    low, mid, high = size // 10, size // 2, size - 1 - size // 10
    ordered = np.partition(windows, (low, mid, high), axis=1)
    median = ordered[:, mid]
    with np.errstate(over="ignore"):
        spread = (ordered[:, high] - ordered[:, low]) / _TEN_TO_NINETY
    return median, np.maximum(spread, np.maximum(SPIKE_SPREAD * np.abs(median), 1e-300))
