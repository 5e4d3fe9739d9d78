"""Whether an amax grows steadily, and when it will leave its format."""

import math
from dataclasses import dataclass

import numpy as np

from numwatch.diagnose.confirm import Line, fit_line
from numwatch.diagnose.evidence import Doubles, Ints, Series
from numwatch.diagnose.thresholds import FIT_CORRELATION, FIT_DOUBLINGS, HORIZON, MIN_FIT
from numwatch.formats import Format

_LOOKS = 32


@dataclass(frozen=True)
class Growth:
    """An amax that doubles steadily.

    Attributes:
        since: The first recorded step, of some that were looked at, from which on this was so.
        slope: Doublings a step.
        overflow: Step at which the line reaches the format's maximum.
        first: Amax and step of the first row.
        last: Of the last row.
    """

    since: int
    slope: float
    overflow: int
    first: tuple[float, int]
    last: tuple[float, int]


def foreseen(series: Series, fmt: Format) -> Growth | None:
    """Returns the growth of a slot's amax; None where no overflow is near.

    It is near where the line through log2 amax of the later half of the rows reaches the format's
    maximum within as many steps as were run so far, or sooner.

    Args:
        series: The slot's rows, up to where anything failed.
        fmt: The format it will leave.
    """
    series = series.where((series.amax > 0) & (series.nonfinite == 0))
    n = len(series)
    if n < MIN_FIT:
        return None
    steps, logs = series.step, np.log2(series.amax)
    found = _reaches(steps, logs, n, fmt)
    if found is None:
        return None
    line, left = found
    since = int(steps[-1])
    for end in reversed(range(MIN_FIT, n, max(1, n // _LOOKS))):
        if _reaches(steps, logs, end, fmt) is None:
            break
        since = int(steps[end - 1])
    return Growth(
        since=since,
        slope=line.slope,
        overflow=int(steps[-1]) + round(left),
        first=(float(series.amax[0]), int(steps[0])),
        last=(float(series.amax[-1]), int(steps[-1])),
    )


def _reaches(steps: Ints, logs: Doubles, n: int, fmt: Format) -> tuple[Line, float] | None:
    """Returns the line through the later half of n rows and the steps that are left of it."""
    if logs[n - 1] - logs[0] < FIT_DOUBLINGS:
        return None
    later = slice(n // 2, n)
    line = fit_line(steps[later], logs[later])
    if line is None or line.slope <= 0 or line.correlation < FIT_CORRELATION:
        return None
    left = (math.log2(fmt.max) - line.end) / line.slope
    ran = float(steps[n - 1] - steps[0])
    return (line, left) if 0 <= left <= HORIZON * ran else None
