"""Two runs of one model, side by side: where they part first by more than their own noise."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Bools, Doubles, Evidence, Ints, Series
from numwatch.diagnose.thresholds import (
    APART_LEAST,
    APART_LOSS,
    APART_SCORE,
    APART_SHARE,
    APART_STEPS,
)
from numwatch.record import Run
from numwatch.snapshot import ROLES, UPDATE_ROLE, role_of

Pair = tuple[Doubles, Doubles]

LOSS = "loss"
_COMPARED = (*ROLES, UPDATE_ROLE)


@dataclass(frozen=True)
class Difference:
    """A figure in which two runs part.

    Attributes:
        slot: The slot, or "loss".
        figure: "amax" (infinite where something was NaN or inf), "rms", both without the loss
            scale; "flushed", the share of elements that are 0 in the format, zeros from before
            included; or "loss".
        step: First step from which on they are apart on three compared steps in a row.
        a: The first run's value at that step.
        b: The second run's.
        apart: How far apart they are there: binades of amax, rms and loss, shares of flushed.
        noise: By how much each run's own steps differ, in the same unit.
        largest: Largest distance at any compared step from there on.
        order: Where the slot stands in the step's data flow; None where not known.
    """

    slot: str
    figure: str
    step: int
    a: float
    b: float
    apart: float
    noise: float
    largest: float
    order: float | None

    @property
    def score(self) -> float:
        """How often the noise fits into the distance."""
        return self.apart / self.noise if self.noise else math.inf


@dataclass(frozen=True)
class Comparison:
    """What two runs differ in.

    Attributes:
        a: The first run's record.
        b: The second's.
        steps: Steps that both have.
        slots: Slots whose rows were compared: those of modules and of updates.
        first: What parted first by step and data flow; None where nothing did.
        others: The rest, from the largest score to the smallest.
        only_a: Slots with rows in the first run alone, in the order of the data flow.
        only_b: Likewise of the second.
    """

    a: str
    b: str
    steps: int
    slots: int
    first: Difference | None
    others: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The first and the others."""
        return () if self.first is None else (self.first, *self.others)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON; infinities and NaN stay what they are."""
        return asdict(self)


@np.errstate(all="ignore")  # a hostile record's NaN and infinities come out as such
def compare(a: Run, b: Run, progress: Callable[[int], None] | None = None) -> Comparison:
    """Compares two runs of one model step by step, by number, and slot by slot, by name.

    Runs are apart at a step where they differ by more than `APART_SCORE` times their noise, which
    is the larger of the two runs' typical distance between steps that follow each other, and by at
    least `APART_LEAST` binades or `APART_SHARE`. Three compared steps in a row must be so.

    Args:
        a: One run, BF16 say.
        b: The other, FP8 say.
        progress: Called with the number of rows read with each piece of either record.
    """
    one, two = Evidence(a, progress), Evidence(b, progress)
    both, only_a, only_b = _slots(one, two)
    found = [
        difference
        for slot in both
        for difference in _of_slot(slot, one.series(slot), two.series(slot), one.order(slot))
    ]
    found += _of_loss(one, two)
    first = min(found, key=_in_flow, default=None)
    rest = sorted((each for each in found if each is not first), key=_by_size)
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        steps=len(np.intersect1d(one.steps.step, two.steps.step)),
        slots=len(both),
        first=first,
        others=tuple(rest),
        only_a=tuple(only_a),
        only_b=tuple(only_b),
    )


def parting(a: Doubles, b: Doubles, least: float) -> tuple[int, float] | None:
    """Returns where two courses part for good reason, and their noise; None where they do not.

    A value that is not finite in one alone is infinitely far from the other's.

    Args:
        a: Float [n], on the steps that both have.
        b: Float [n].
        least: Distance below which they never part, in their unit.
    """
    noise = max(_noise(a, least), _noise(b, least))
    apart = distance(a, b)
    at = first_confirmed(apart > max(APART_SCORE * noise, least))
    return None if at is None else (at, noise)


def distance(a: Doubles, b: Doubles) -> Doubles:
    """Returns |a - b|, infinite where just one of them is finite, 0 where both are not."""
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(finite, np.abs(a - b), 0.0)
    lone: Bools = np.isfinite(a) != np.isfinite(b)
    return np.where(lone, np.inf, apart)


def _noise(values: Doubles, least: float) -> float:
    """Returns the typical distance of values that follow each other, as a normal's deviation."""
    known = values[np.isfinite(values)]
    distances = np.abs(np.diff(known))
    if len(distances) < APART_STEPS:  # too few for a median; the largest may be the jump itself
        return max(float(np.sort(distances)[-2:][0]), least) if len(distances) > 1 else least
    # Of the median: a jump or a spike is what is looked for, not noise. The difference of two
    # normal values has sqrt(2) their deviation, and the median of its magnitude is 0.6745 of that.
    return float(np.median(distances)) / (0.6745 * math.sqrt(2.0))


def _slots(one: Evidence, two: Evidence) -> tuple[list[str], list[str], list[str]]:
    # Moments are averages over many steps: they have hardly any noise, and no news either.
    a, b = ({slot for slot in each.recorded if role_of(slot) in _COMPARED} for each in (one, two))
    return one.in_order(a & b), one.in_order(a - b), two.in_order(b - a)


def _of_slot(slot: str, a: Series, b: Series, order: float | None) -> list[Difference]:
    every, whole = _aligned(a, b), _aligned(a.fully, b.fully)
    figures: dict[str, tuple[Ints, Pair, float]] = {
        "amax": (every[0].step, (_amax(every[0]), _amax(every[1])), APART_LEAST),
        "rms": (whole[0].step, (_rms(whole[0]), _rms(whole[1])), APART_LEAST),
        "flushed": (whole[0].step, (_lost(whole[0]), _lost(whole[1])), APART_SHARE),
    }
    found = []
    for name, (steps, pair, least) in figures.items():
        logs = pair if name == "flushed" else (_log2(pair[0]), _log2(pair[1]))
        parted = parting(*logs, least)
        if parted is not None:
            found.append(_difference(slot, name, steps, logs, parted, pair, order))
    return found


def _of_loss(one: Evidence, two: Evidence) -> list[Difference]:
    steps, here, there = np.intersect1d(one.steps.step, two.steps.step, return_indices=True)
    a, b = one.steps.loss[here], two.steps.loss[there]
    measured = ~(np.isnan(a) & np.isnan(b))
    steps, a, b = steps[measured], a[measured], b[measured]
    # Losses may be negative; then they are compared in their own unit, by their noise alone.
    if ((a <= 0) | (b <= 0)).any():
        parted = parting(a, b, 0.0)
        return [] if parted is None else [_difference(LOSS, LOSS, steps, (a, b), parted, (a, b))]
    logs = _log2(a), _log2(b)
    parted = parting(*logs, APART_LOSS)
    return [] if parted is None else [_difference(LOSS, LOSS, steps, logs, parted, (a, b))]


def _difference(
    slot: str,
    figure: str,
    steps: Ints,
    judged: Pair,
    parted: tuple[int, float],
    values: Pair,
    order: float | None = None,
) -> Difference:
    at, noise = parted
    apart = distance(*judged)
    return Difference(
        slot=slot,
        figure=figure,
        step=int(steps[at]),
        a=float(values[0][at]),
        b=float(values[1][at]),
        apart=float(apart[at]),
        noise=noise,
        largest=float(apart[at:].max()),
        order=order,
    )


def _aligned(a: Series, b: Series) -> tuple[Series, Series]:
    _, here, there = np.intersect1d(a.step, b.step, return_indices=True)
    return a.where(here), b.where(there)


def _amax(series: Series) -> Doubles:
    # Intended -inf masks are no failure.
    failed = series.nans + series.posinfs > 0
    return np.where(failed, np.inf, series.unscaled_amax)


def _rms(series: Series) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        rms: Doubles = series.rms.astype(np.float64) / series.loss_scale
    return rms


def _lost(series: Series) -> Doubles:
    zeros = series.zeros.astype(np.float64)
    flushed = np.nan_to_num(np.fmax(series.flushed, series.cast_flushed).astype(np.float64))
    lost: Doubles = zeros + (1.0 - zeros) * flushed
    return lost


def _log2(values: Doubles) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(values)


def _in_flow(difference: Difference) -> tuple[int, bool, float, str, str]:
    order = difference.order
    return difference.step, order is None, order or 0.0, difference.slot, difference.figure


def _by_size(difference: Difference) -> tuple[float, float, str, str]:
    return -difference.score, -difference.largest, difference.slot, difference.figure
