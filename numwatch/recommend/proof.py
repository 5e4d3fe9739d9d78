"""`Proof`: a baseline and a plan, trained over the same batches and seeds, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from numwatch.stats import Bounded

Verdict = Literal["holds", "fails", "undecided"]
TOLERANCE = 0.01
"""Relative rise of the loss a plan may cost: the issue of most FP8 papers; policy."""
CERTAINTY = 2.0
"""Standard errors by which a rise must lie beyond the tolerance, or below it: policy."""


@dataclass(frozen=True)
class SlotProof:
    """One operand: what the record foretold of it, and what its real casts did.

    Attributes:
        slot: `<module>:<role>`.
        format: Name of the format.
        predicted_flushed: From the baseline's record, share of the non-zero elements.
        predicted_saturated: Likewise.
        flushed: Observed under the plan, over all recorded steps.
        saturated: Likewise.
    """

    slot: str
    format: str
    predicted_flushed: Bounded
    predicted_saturated: Bounded
    flushed: float
    saturated: float


@dataclass(frozen=True)
class Proof:
    """What training under a plan came to.

    Attributes:
        figure: What `baseline` and `plan` are, the lower the better: a logged metric, or the loss
            at the end.
        seeds: The seeds, of which each trained both.
        baseline: The figure for each seed; NaN or inf where the run diverged.
        plan: Likewise.
        steps: Optimizer steps of each run.
        tolerance: Relative rise allowed.
        slots: The operands, the one that flushes most first.
        seconds: Time each kind of run took in all: `baseline` and `plan`.
        emulated: Whether the plan was emulated, not run in the real formats.
    """

    figure: str
    seeds: tuple[int, ...]
    baseline: tuple[float, ...]
    plan: tuple[float, ...]
    steps: int
    tolerance: float
    slots: tuple[SlotProof, ...]
    seconds: Mapping[str, float]
    emulated: bool

    @property
    def rises(self) -> tuple[float, ...]:
        """By how much the plan's figure is above the baseline's, relative to it, seed by seed."""
        return tuple(map(_rise, self.baseline, self.plan))

    @property
    def rise(self) -> float:
        """Mean of the rises; NaN or inf where a run diverged."""
        return fmean(self.rises)

    @property
    def error(self) -> float:
        """Standard error of that mean; NaN of a single seed."""
        if len(self.rises) < 2 or not math.isfinite(self.rise):  # noqa: PLR2004  # a spread takes two
            return math.nan
        return stdev(self.rises) / math.sqrt(len(self.rises))

    @property
    def verdict(self) -> Verdict:
        """Whether the rise is within the tolerance, beyond it, or too uncertain to say.

        A plan whose mean rise is within the tolerance holds; it fails where a run diverged or the
        rise lies beyond by `CERTAINTY` standard errors; between the two more seeds are needed. Of
        a single seed the rise alone decides.
        """
        if not all(map(math.isfinite, self.baseline)):
            return "undecided"
        if not math.isfinite(self.rise):
            return "fails"
        if self.rise <= self.tolerance:
            return "holds"
        doubt = 0.0 if math.isnan(self.error) else CERTAINTY * self.error
        return "fails" if self.rise - doubt > self.tolerance else "undecided"


def _rise(here: float, there: float) -> float:
    if here == there:
        return 0.0
    return (there - here) / abs(here) if here else math.inf


def spread(figures: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation over seeds; the latter 0 of a single one."""
    finite = all(map(math.isfinite, figures))
    deviation = stdev(figures) if finite and len(figures) > 1 else 0.0
    return fmean(figures), deviation
