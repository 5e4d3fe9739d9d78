"""When a condition holds long enough to be believed, and what a line through a series says."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numwatch.diagnose.evidence import Bools
from numwatch.diagnose.thresholds import CONFIRMATIONS

Numbers = npt.NDArray[np.floating]


def first_confirmed(condition: Bools, times: int = CONFIRMATIONS) -> int | None:
    """Returns where the first stretch of `times` true entries begins; None where there is none.

    Args:
        condition: Bool [n], an entry for each recorded step.
        times: Entries in a row that must be true.
    """
    if len(condition) < times:
        return None
    runs = np.cumsum(condition)
    ends = runs[times - 1 :] - np.concatenate([[0], runs[:-times]])
    held = np.flatnonzero(ends == times)
    return int(held[0]) if len(held) else None


@dataclass(frozen=True)
class Line:
    """A straight line fitted by least squares.

    Attributes:
        slope: Per unit of x.
        end: Its value at the last x.
        correlation: Pearson's, of x and y; 0 where either is constant.
    """

    slope: float
    end: float
    correlation: float


def fit_line(x: npt.NDArray[np.number], y: Numbers) -> Line | None:
    """Returns the line through points [n]; None of fewer than two different x."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or x.min() == x.max():  # noqa: PLR2004  # a line has two parameters
        return None
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    spread = float(np.sqrt((dx @ dx) * (dy @ dy)))
    correlation = float(dx @ dy) / spread if spread > 0 else 0.0
    return Line(slope, float(y.mean() + slope * dx[-1]), correlation)
