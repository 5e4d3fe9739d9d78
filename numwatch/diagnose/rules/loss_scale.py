"""Rules about the loss scale: whether it collapses, stands too low, or costs too many steps."""

import math
from collections.abc import Iterator

import numpy as np

from numwatch.diagnose.evidence import Bools, Evidence, Ints
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.flushing import flushing
from numwatch.diagnose.scales import higher_scale, scale_window, suggested_exponent
from numwatch.diagnose.skips import Descent, descents
from numwatch.diagnose.thresholds import PERSISTENT_SKIPS, SCALE_HEADROOM, SPREAD_WINDOW

_FACTS = "Micikevicius et al. 2017, section 3.2; torch.amp.GradScaler has no floor"
_MIN_SPELLS = 3


def loss_scale_collapse_overflow(evidence: Evidence) -> Iterator[Finding]:
    """The scale falls on and on since gradients are too large for FP16 at any scale it had."""
    # One that ends where gradients fit has found the scale it looked for.
    found = [each for each in evidence.once(descents) if each.by_overflow and not each.recovered]
    for descent in found[:1]:
        failure = descent.failure
        where = f" in {failure.slot}" if failure and failure.slot else ""
        line = f" at {failure.source}" if failure and failure.source else ""
        lasting = "falls on" if descent.end < 1.0 else "fell"
        yield Finding(
            rule="loss-scale-collapse-overflow",
            severity="critical",
            step=descent.first,
            slot=failure.slot if failure else None,
            evidence=_figures(descent),
            cause=f"gradients overflow FP16{where}{line} again and again, and the loss scale "
            f"{lasting} from {_power(descent.start)} to {_power(descent.end)}, where small "
            "gradients are lost",
            cure="scale the loss itself down (a mean in place of a sum, normalised targets), or "
            'use `precision="bf16-mixed"`, which needs no loss scale',
            source=_FACTS,
            order=failure.order if failure else None,
        )


def loss_scale_collapse_nan(evidence: Evidence) -> Iterator[Finding]:
    """The scale falls on and on for a NaN that no scale can heal."""
    found = [each for each in evidence.once(descents) if not each.by_overflow]
    for descent in found[:1]:
        failure = descent.failure
        place = ""
        if failure is not None:
            place = (
                f" first in {failure.slot}" if failure.slot else f" first in the {failure.phase}"
            )
        yield Finding(
            rule="loss-scale-collapse-nan",
            severity="warning" if descent.recovered else "critical",
            step=descent.first if failure is None else max(failure.step, descent.first),
            slot=failure.slot if failure else None,
            evidence=_figures(descent),
            cause=f"what is not finite comes{place} and not from overflowing gradients, so each "
            f"skip lowers the loss scale for nothing, from {_power(descent.start)} to "
            f"{_power(descent.end)}",
            cure="mend what makes it, which no `GradScaler(init_scale=...)` does; where no finding "
            "names it, `Trainer(detect_anomaly=True)` names an operation of backward",
            source=_FACTS,
            order=failure.order if failure else None,
        )


def persistent_skips(evidence: Evidence) -> Iterator[Finding]:
    """Steps are skipped far more often than a search for the scale explains."""
    steps = evidence.steps
    # A loss that is not finite is another matter than a scale that is too high.
    skipped = steps.skipped & steps.found_inf & (np.isfinite(steps.loss) | ~steps.loss_known)
    taken = np.flatnonzero(~skipped)
    if not len(taken):
        return
    start = int(taken[0])
    later = skipped[start:]
    window = min(SPREAD_WINDOW, len(later))
    counts = _sums(later, window)
    spells = _sums(later & ~np.concatenate([[False], later[:-1]]), window)
    often = (counts > PERSISTENT_SKIPS * SPREAD_WINDOW) & (spells >= _MIN_SPELLS)
    if not often.any():
        return
    at = int(np.flatnonzero(often)[0])
    inside = slice(start + at, start + at + window)
    first = start + at + int(np.flatnonzero(later[at:])[0])
    grew = int((steps.scale_after[inside] > steps.scale_before[inside]).sum())
    step = int(steps.step[first])
    # Growth alone: each skip undoes one.
    hasty = grew >= int(spells[at]) - 1 and grew >= _MIN_SPELLS
    cause = (
        "the loss scale grows so often that it overflows again at once"
        if hasty
        else ("gradients overflow at a loss scale that they had fitted in a few steps before")
    )
    yield Finding(
        rule="persistent-skips",
        severity="warning",
        step=step,
        slot=None,
        evidence=(
            Figure("steps skipped, share", float(counts[at]) / window, step),
            Figure("skips in all", float(skipped[start:].sum())),
            Figure("growths of the loss scale in the same steps", float(grew)),
        ),
        cause=f"{int(counts[at])} of {window} steps from step {int(steps.step[start + at])} on "
        f"were skipped: {cause}",
        cure="`GradScaler(growth_interval=2000)`, so that the scale is tried higher more rarely"
        if hasty
        else "`Trainer(gradient_clip_val=1.0)` does not help before unscaling: lower the learning "
        'rate or warm it up, or use `precision="bf16-mixed"`',
        source="policy; torch.amp.GradScaler's growth_interval of 2000 skips 1 step in 2000",
    )


def loss_scale_too_low(evidence: Evidence) -> Iterator[Finding]:
    """Gradients are flushed at a loss scale that could be much higher without an overflow."""
    found = [each for each in evidence.once(flushing) if each.format == "fp16"]
    if not found:
        return
    window = evidence.once(scale_window)
    first = found[0]
    scale = first.loss_scale
    if window.high is None or not window.high - _log2(scale) >= SCALE_HEADROOM:
        return
    steps = evidence.steps
    exponent = evidence.once(suggested_exponent)
    below = int((steps.scale_before < math.ldexp(1.0, exponent)).sum())
    figures = [
        Figure("loss scale, log2", _log2(scale), first.step),
        Figure("largest loss scale without an overflow, log2", float(window.high)),
        Figure("steps at a lower scale than the one proposed", float(below)),
    ]
    if window.low is not None:
        figures.append(Figure("least loss scale that flushes next to nothing, log2", window.low))
    yield Finding(
        rule="loss-scale-too-low",
        severity="warning",
        step=first.step,
        slot=None,
        evidence=tuple(figures),
        cause=f"the loss scale stands at {_power(scale)} where gradients would fit FP16 up to "
        f"2^{window.high}, so that {below} steps ran with small ones flushed to zero",
        cure=higher_scale(evidence),
        source="Micikevicius et al. 2017, section 3.2: S * max|g| < 65504",
    )


def _figures(descent: Descent) -> tuple[Figure, ...]:
    figures = [
        Figure("steps skipped", float(descent.skipped)),
        Figure("loss scale before", descent.start, descent.first),
        Figure("loss scale after", descent.end, descent.last),
    ]
    if not math.isnan(descent.peak):
        figures.append(Figure("largest finite gradient in them, scaled", descent.peak))
    return tuple(figures)


def _sums(flags: Bools, window: int) -> Ints:
    """Returns how many flags are set in each stretch of `window` entries."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    counts: Ints = sums[window:] - sums[:-window]
    return counts


def _log2(scale: float) -> float:
    return math.log2(scale) if scale > 0 else -math.inf


def _power(scale: float) -> str:
    """Writes a loss scale: as a number where that is short, else as a power of two."""
    if not 0 < scale < math.inf or (scale >= 1 and scale <= 65536):  # noqa: PLR2004  # five digits
        return f"{scale:g}"
    return f"2^{math.log2(scale):.0f}"


RULES = (
    loss_scale_collapse_overflow,
    loss_scale_collapse_nan,
    loss_scale_too_low,
    persistent_skips,
)
