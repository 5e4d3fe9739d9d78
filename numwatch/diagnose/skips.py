"""What the skipped steps of a scaler say: descents of the loss scale, and whether they can end."""

import math
from dataclasses import dataclass

import numpy as np

from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.failing import Failure, failures
from numwatch.diagnose.thresholds import CONFIRMATIONS, OVERFLOW_MARGIN
from numwatch.formats import get_format
from numwatch.recipes import CollapseAlarm
from numwatch.recipes.collapse import RECOVERED
from numwatch.snapshot import GRADIENT_ROLES

FP16_MAX = get_format("fp16").max


@dataclass(frozen=True)
class Descent:
    """A loss scale that falls for good.

    Attributes:
        first: The first skipped step of it.
        alarm: The step at which it was clear.
        last: The last step of it: the scale recovers after it, or the run ends.
        skipped: Steps skipped from `first` to `last`.
        start: Loss scale before `first`.
        end: Loss scale after `last`.
        by_overflow: Whether gradients were too large for FP16; else lowering the scale can't help.
        failure: What failed first in it, None where that is not known.
        peak: Largest finite gradient element, scaled, in its rows; 0.0 where none was finite, NaN
            where there are no rows.
        recovered: Whether steps were taken after it, at a loss scale that still raises gradients.
    """

    first: int
    alarm: int
    last: int
    skipped: int
    start: float
    end: float
    by_overflow: bool
    failure: Failure | None
    peak: float
    recovered: bool


def descents(evidence: Evidence) -> list[Descent]:
    """Returns each collapse of the loss scale, in order."""
    steps, alarm = evidence.steps, CollapseAlarm()
    found: list[Descent] = []
    for i in range(len(steps)):
        told = alarm.see(
            int(steps.step[i]),
            float(steps.scale_before[i]),
            float(steps.scale_after[i]),
            bool(steps.skipped[i]),
        )
        if told is not None:
            found.append(_descent(evidence, i))
    return found


def _descent(evidence: Evidence, at: int) -> Descent:
    steps = evidence.steps
    first = at
    # Back to where the scale last stood highest; what was skipped from there on belongs to it.
    while first > 0 and steps.scale_before[first - 1] >= steps.scale_before[first]:
        first -= 1
    while not steps.skipped[first]:
        first += 1
    last = at
    while last + 1 < len(steps) and steps.scale_after[last + 1] <= steps.scale_after[last]:
        last += 1
    begin, end = int(steps.step[first]), int(steps.step[last])
    inside = [each for each in evidence.once(failures) if begin <= each.step <= end]
    peak, last_peak = _peaks(evidence, begin, end)
    taken = last - first - int(np.flatnonzero(steps.skipped[first : last + 1])[-1])
    failure, by_overflow = _kind(
        evidence, inside, first, at, last_peak, healed=taken >= CONFIRMATIONS
    )
    return Descent(
        first=begin,
        alarm=int(steps.step[at]),
        last=end,
        skipped=int(steps.skipped[first : last + 1].sum()),
        start=float(steps.scale_before[first]),
        end=float(steps.scale_after[last]),
        by_overflow=by_overflow,
        failure=failure,
        peak=peak,
        recovered=bool((~steps.skipped[at:] & (steps.scale_after[at:] >= RECOVERED)).any()),
    )


def _kind(
    evidence: Evidence,
    inside: list[Failure],
    first: int,
    at: int,
    peak: float,
    *,
    healed: bool,
) -> tuple[Failure | None, bool]:
    """Returns what failed first, and whether it was an overflow of gradients alone.

    Args:
        evidence: What the run is known by.
        inside: The failures of the descent, by rising step.
        first: Index of its first skipped step.
        at: Index of the step at which it was clear.
        peak: Largest finite scaled gradient in the last rows that have one: beside a value that no
            scale heals it has fallen with the scale.
        healed: Whether steps were taken at the scale it ends at.
    """
    before_backward = next((each for each in inside if each.phase != "backward"), None)
    if before_backward is not None:
        return before_backward, False
    named = next((each for each in inside if each.operation), None)
    shown = named or next((each for each in inside if each.value), inside[0] if inside else None)
    if named is not None and (named.at_a_pole or named.value == "inf"):
        return named, named.overflow
    if healed and shown is not None and shown.value == "inf":
        return shown, True
    close = FP16_MAX / OVERFLOW_MARGIN
    if peak == 0:  # rows, and in none of them anything finite
        return shown, shown is not None and shown.value == "inf"
    if math.isnan(peak):
        before = _unscaled_amax(evidence, int(evidence.steps.step[first]))
        peak = math.inf if before is None else before * float(evidence.steps.scale_before[at])
    return shown, peak >= close


def _peaks(evidence: Evidence, first: int, last: int) -> tuple[float, float]:
    """Returns the largest finite scaled gradient in the rows of steps that were not finite.

    First of all these steps, then of the last one with any; 0.0 where none is finite, NaN without
    rows.
    """
    peaks: dict[int, float] = {}
    for _, _, series in evidence.by_role(*GRADIENT_ROLES):
        here = series.where((series.step >= first) & (series.step <= last) & (series.nonfinite > 0))
        for step, amax in zip(here.step.tolist(), here.amax.tolist(), strict=True):
            peaks[step] = max(peaks.get(step, 0.0), amax)
    if not peaks:
        return math.nan, math.nan
    last_finite = max((step for step, peak in peaks.items() if peak > 0), default=max(peaks))
    return max(peaks.values()), peaks[last_finite]


def _unscaled_amax(evidence: Evidence, before: int) -> float | None:
    """Returns the largest unscaled gradient in the last row before a step; None without any."""
    found = []
    for _, _, series in evidence.by_role(*GRADIENT_ROLES):
        earlier = np.flatnonzero((series.step < before) & (series.nonfinite == 0))
        if len(earlier):
            found.append(float(series.unscaled_amax[earlier[-1]]))
    return max(found, default=None)
