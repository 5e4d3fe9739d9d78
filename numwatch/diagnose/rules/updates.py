"""Rules about updates that weights stored in a low format swallow."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Bools, Doubles, Evidence, Ints
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.parameters import first_and_others, parameter_order
from numwatch.diagnose.thresholds import (
    FULL_RATE,
    STANDSTILL_EDQ,
    STANDSTILL_SHARE,
    SWALLOWED_EDQ,
    SWALLOWED_SHARE,
)
from numwatch.snapshot import path_of

_COLLAGE = "Collage (2405.03637); Zamirai et al. 2020 (2010.06192)"
_WIDER = '`precision="bf16-mixed"`'


@dataclass(frozen=True, eq=False)
class _Lost:
    """Updates of weights stored low, on the steps with a learning rate to judge them by.

    Attributes:
        storage: Name of the format.
        step: Int [n].
        swallowed: Float [n], share of all parameters' updates that is lost.
        edq: Float [n], normalised EDQ, averaged alike.
        slots: Of each slot step, swallowed share and normalised EDQ.
    """

    storage: str
    step: Ints
    swallowed: Doubles
    edq: Doubles
    slots: dict[str, tuple[Ints, Doubles, Doubles]]

    @property
    def standing_still(self) -> Bools:
        """Whether nearly nothing arrives."""
        return (self.swallowed >= STANDSTILL_SHARE) & ~(self.edq > STANDSTILL_EDQ)


def lost_updates(evidence: Evidence) -> Iterator[Finding]:
    """Updates that rounding takes from weights which nothing holds in a wider format."""
    for lost in evidence.once(_lost):
        if first_confirmed(lost.standing_still) is not None:
            continue
        held = {}
        for name, (steps, swallowed, edq) in lost.slots.items():
            at = first_confirmed((swallowed >= SWALLOWED_EDQ) & (edq < SWALLOWED_EDQ))
            if at is not None:
                held[name] = int(steps[at])
        at = first_confirmed(lost.swallowed >= SWALLOWED_SHARE)
        if at is None and not held:
            continue
        worst = max(held or lost.slots, key=lambda slot: float(np.mean(lost.slots[slot][1])))
        slot, first, others = first_and_others(evidence, (held or {worst: 0}).items())
        step = first if at is None else int(lost.step[at])
        share = float(lost.swallowed.mean())
        of_worst = float(np.mean(lost.slots[worst][1]))
        yield Finding(
            rule="lost-updates",
            severity="info" if at is None else "warning",
            step=step,
            slot=slot,
            order=parameter_order(evidence, slot),
            evidence=(
                Figure("updates lost, share of the whole run", share),
                Figure("EDQ, normalised", _mean(lost.edq)),
                Figure(f"updates lost by {path_of(slot)}, share", float(lost.slots[slot][1][0])),
            ),
            cause=f"weights stored in {lost.storage.upper()} alone lose {share:.0%} of their "
            f"updates to rounding, {path_of(worst)} {of_worst:.0%}",
            cure=f"keep FP32 weights, {_WIDER}, or round stochastically",
            source=_COLLAGE,
            others=others,
        )


def learning_rate_below_resolution(evidence: Evidence) -> Iterator[Finding]:
    """Updates so small that weights in their format stand still."""
    for lost in evidence.once(_lost):
        at = first_confirmed(lost.standing_still)
        if at is None:
            continue
        step = int(lost.step[at])
        held = [
            (slot, step)
            for slot, (_, swallowed, _) in lost.slots.items()
            if np.mean(swallowed) >= STANDSTILL_SHARE
        ]
        slot, _, others = first_and_others(evidence, held or [(min(lost.slots), step)])
        rates = evidence.steps.lr[evidence.steps.step == step]
        rate = (Figure("learning rate", float(rates[0]), step),) if len(rates) else ()
        yield Finding(
            rule="learning-rate-below-resolution",
            severity="critical",
            step=step,
            slot=slot,
            order=parameter_order(evidence, slot),
            evidence=(
                Figure("updates lost, share", float(lost.swallowed[at]), step),
                Figure("EDQ, normalised", float(lost.edq[at]), step),
                *rate,
            ),
            cause=f"{lost.swallowed[at]:.1%} of the updates are below the resolution of weights "
            f"stored in {lost.storage.upper()}, which stand still",
            cure=f"keep FP32 weights, {_WIDER}, or raise the optimizer's `lr`",
            source=_COLLAGE,
            others=others,
        )


RULES = (lost_updates, learning_rate_below_resolution)


def _lost(evidence: Evidence) -> list[_Lost]:
    rows: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for (slot, storage), columns in evidence.lost_updates.items():
        lost = (columns["nonzero"] > 0) & (columns["sampled"] > 0)
        lost &= np.isfinite(columns["swallowed"])
        lost &= _judged(evidence, columns["step"])
        if lost.any():
            kept = {name: column[lost] for name, column in columns.items()}
            rows.setdefault(storage, {})[slot] = kept
    return [_pooled(storage, slots) for storage, slots in sorted(rows.items())]


def _pooled(storage: str, slots: dict[str, dict[str, np.ndarray]]) -> _Lost:
    step = np.concatenate([columns["step"] for columns in slots.values()])
    every, place = np.unique(step, return_inverse=True)

    def together(name: str) -> Doubles:
        value = np.concatenate([columns[name] for columns in slots.values()])
        numel = np.concatenate([columns["numel"] for columns in slots.values()])
        nonzero = np.concatenate([columns["nonzero"] for columns in slots.values()])
        sampled = np.concatenate([columns["sampled"] for columns in slots.values()])
        known = np.isfinite(value)
        weight = np.where(known, nonzero * np.where(numel > 0, numel / sampled, 1.0), 0.0)
        sums = np.bincount(place, weight * np.where(known, value, 0.0), len(every))
        with np.errstate(invalid="ignore"):
            return sums / np.bincount(place, weight, len(every))

    return _Lost(
        storage,
        every,
        together("swallowed"),
        together("edq_normalised"),
        {slot: (c["step"], c["swallowed"], c["edq_normalised"]) for slot, c in slots.items()},
    )


def _judged(evidence: Evidence, steps: Ints) -> Bools:
    """Whether the learning rate of these steps is neither in its warm-up nor near its end."""
    full = evidence.once(_at_full_rate)
    if not len(full):
        return np.ones(len(steps), np.bool_)
    places = np.searchsorted(evidence.steps.step, steps).clip(max=len(full) - 1)
    judged: Bools = full[places] | (evidence.steps.step[places] != steps)
    return judged


def _at_full_rate(evidence: Evidence) -> Bools:
    rate = evidence.steps.lr
    if not np.isfinite(rate).any():
        return np.ones(len(rate), np.bool_)
    after = np.append(rate[1:], rate[-1:])
    before = np.append(rate[:1], rate[:-1])
    rising = (after > rate) | ((rate > before) & (np.arange(len(rate)) == len(rate) - 1))
    full: Bools = ~rising & ~(rate < FULL_RATE * np.nanmax(rate))
    return full


def _mean(values: Doubles) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
