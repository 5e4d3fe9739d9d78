"""Rules about the course of the loss and of the gradient norm."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from numwatch.diagnose.evidence import Doubles, Evidence
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.spikes import LEVEL, Spike, first_level, level, spikes
from numwatch.diagnose.thresholds import (
    CONFIRMATIONS,
    DIVERGED_SHARE,
    DRIFT_BLOCKS,
    DRIFT_RISE,
    DRIFT_VALUES,
    LOSS_RISE,
    NORM_RISE,
    NORM_WARM_UP,
    SPIKE_HORIZON,
    SPIKE_WARM_UP,
)

_OLMO = "OLMo-core's spike score: 6 deviations over 128 steps"
_CLIP = "clip, `Trainer(gradient_clip_val=1.0)`, or lower the optimizer's `lr`"


def loss_spikes(evidence: Evidence) -> list[Spike]:
    """Returns every spike of the loss after its warm-up."""
    return spikes(evidence.steps.step, evidence.steps.loss, warm_up=SPIKE_WARM_UP)


def norm_spikes(evidence: Evidence) -> list[Spike]:
    """Returns every spike of the gradient norm, in log2."""
    return spikes(evidence.steps.step, _log_norm(evidence), warm_up=NORM_WARM_UP, rise=NORM_RISE)


def loss_spike(evidence: Evidence) -> Iterator[Finding]:
    """A loss that left its own spread: for good, back above where it began, or for a moment."""
    diverged = _early(evidence)
    found = [spike for spike in evidence.once(loss_spikes) if spike.confirmed]
    worst = [spike for spike in found if spike.lasting or _undone(evidence, spike)]
    if diverged is not None and (not worst or diverged.step <= worst[0].step):
        yield _loss_finding(evidence, diverged, [diverged])
    elif worst:
        yield _loss_finding(evidence, worst[0], found)
    elif found:
        yield _loss_finding(evidence, max(found, key=lambda spike: spike.score), found)


def gradient_norm_spike(evidence: Evidence) -> Iterator[Finding]:
    """A gradient norm at least four times what it was, by its own spread."""
    found = [spike for spike in evidence.once(norm_spikes) if spike.confirmed]
    if not found:
        return
    losses = [
        spike
        for spike in evidence.once(loss_spikes)
        if spike.lasting or (spike.confirmed and _undone(evidence, spike))
    ]
    with_loss = [
        spike
        for spike in found
        if any(abs(other.step - spike.step) <= SPIKE_HORIZON for other in losses)
    ]
    spike = with_loss[0] if with_loss else max(found, key=lambda spike: spike.score)
    times = 2.0 ** (spike.value - spike.usual)
    yield Finding(
        rule="gradient-norm-spike",
        severity="warning" if with_loss else "info",
        step=spike.step,
        slot=None,
        evidence=(
            Figure("gradient norm", 2.0**spike.value, spike.step),
            Figure("gradient norm before, median", 2.0**spike.usual),
            Figure("spikes", len(found)),
        ),
        cause=f"the gradient norm rose to {times:.3g} times what it was"
        + (" and did not come back" if spike.lasting else ""),
        cure=_CLIP,
        source=f"{_OLMO}, of log2; warm-up from ZClip (2504.02507)",
    )


def gradient_norm_drift(evidence: Evidence) -> Iterator[Finding]:
    """A gradient norm that climbs slowly and steadily."""
    norms = _log_norm(evidence)
    known = np.isfinite(norms)
    steps, norms = evidence.steps.step[known], norms[known]
    start = len(norms) // 4  # its beginning is a search
    steps, norms = steps[start:], norms[start:]
    if len(norms) < DRIFT_VALUES:
        return
    medians = np.array([np.median(block) for block in np.array_split(norms, DRIFT_BLOCKS)])
    if not (np.diff(medians) > 0).all() or medians[-1] - medians[0] < DRIFT_RISE:
        return
    step = int(np.array_split(steps, DRIFT_BLOCKS)[1][0])
    yield Finding(
        rule="gradient-norm-drift",
        severity="warning" if _loss_rises(evidence, int(steps[0])) else "info",
        step=step,
        slot=None,
        evidence=(
            Figure("gradient norm, median of the last part", 2.0 ** float(medians[-1])),
            Figure("gradient norm, median of the first part", 2.0 ** float(medians[0])),
        ),
        cause=f"since step {int(steps[0])} the gradient norm has climbed "
        f"{2.0 ** (medians[-1] - medians[0]):.3g}-fold, as before low-precision runs diverge",
        cure="look at weights of norms and outlier channels, compute them in a wider format, or "
        "lower the optimizer's `lr`",
        source="2506.20752",
    )


RULES = (loss_spike, gradient_norm_spike, gradient_norm_drift)


@dataclass(frozen=True)
class _Outcome:
    severity: str
    text: str


def _loss_finding(evidence: Evidence, spike: Spike, found: list[Spike]) -> Finding:
    outcome = _outcome(evidence, spike)
    return Finding(
        rule="loss-spike",
        severity=outcome.severity,
        step=spike.step,
        slot=None,
        evidence=(
            Figure("loss", spike.value, spike.step),
            Figure("loss before, median", spike.usual),
            Figure("deviations above it", spike.score, spike.step),
            Figure("loss at the end", level(evidence.steps.loss)),
            Figure("spikes", len(found)),
        ),
        cause=f"the loss rose from {spike.usual:.4g} to {spike.peak:.4g} {outcome.text}",
        cure=_CLIP,
        source=_OLMO,
    )


def _outcome(evidence: Evidence, spike: Spike) -> _Outcome:
    losses = evidence.steps.loss[np.isfinite(evidence.steps.loss)]
    # The first update may be what threw the weights about.
    first, last = min(first_level(losses), float(losses[0])), level(losses)
    if spike.lasting and last > spike.usual and last - first > abs(first):
        return _Outcome("critical", "and ended far above where it began")
    if spike.lasting:
        return _Outcome("warning", "and did not come back")
    if _undone(evidence, spike):
        return _Outcome("warning", "which is where it began")
    return _Outcome("info", "and came back")


def _undone(evidence: Evidence, spike: Spike) -> bool:
    """Whether a spike undid all that had been learnt."""
    return spike.peak >= first_level(evidence.steps.loss) > spike.usual


def _early(evidence: Evidence) -> Spike | None:
    """Returns a divergence within the warm-up, before there is a spread to judge by."""
    known = np.isfinite(evidence.steps.loss)
    steps, losses = evidence.steps.step[known], evidence.steps.loss[known]
    if len(losses) < 2 * LEVEL:
        return None
    # The least of the first: the very first update may be what throws the weights about.
    first = float(losses[:CONFIRMATIONS].min())
    levels = np.median(np.lib.stride_tricks.sliding_window_view(losses, LEVEL), axis=1)
    below = np.flatnonzero(levels - first <= abs(first))
    start = int(below[-1]) + 1 if len(below) else 0
    if start >= min(SPIKE_WARM_UP, len(levels)):
        return None
    rest = losses[start:]
    rest = rest[int(np.argmax(rest - first > abs(first))) :]
    if np.quantile(rest, 1 - DIVERGED_SHARE) - first <= abs(first):
        return None  # some batches are simply lower than others
    start = len(losses) - len(rest)
    return Spike(
        step=int(steps[start]),
        value=float(losses[start]),
        score=float((losses[start] - first) / abs(first)) if first else float("inf"),
        usual=first,
        high=len(rest),
        lasting=True,
        peak=float(rest.max()),
    )


def _loss_rises(evidence: Evidence, since: int) -> bool:
    losses = evidence.steps.loss[evidence.steps.step >= since]
    losses = losses[np.isfinite(losses)]
    if len(losses) < DRIFT_VALUES:
        return False
    medians = [float(np.median(block)) for block in np.array_split(losses, DRIFT_BLOCKS)]
    low, high = np.percentile(losses[-len(losses) // DRIFT_BLOCKS :], (10, 90))
    least = min(medians)
    return medians[-1] - least > max(LOSS_RISE * abs(least), float(high - low) / 2)


def _log_norm(evidence: Evidence) -> Doubles:
    norms = evidence.steps.grad_norm
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log2(norms)
    return np.where(np.isfinite(logs), logs, np.nan)
