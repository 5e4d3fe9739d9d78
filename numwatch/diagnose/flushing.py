"""Gradients that a format turns to zero: in part, or whole layers of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Bools, Evidence, Series, evenly
from numwatch.diagnose.thresholds import (
    CONFIRMATIONS,
    FLUSHED_SHARE,
    LASTING,
    MIN_ELEMENTS,
    NEAR_FLUSHING,
)
from numwatch.formats import Format
from numwatch.record.slot_formats import judged_format, known_format, stored_in
from numwatch.snapshot import GRADIENT_ROLES, SlotInfo
from numwatch.stats import estimate_flushed

_SAMPLED_STEPS = 8


@dataclass(frozen=True)
class Flushing:
    """A gradient of which a good part becomes zero, while what is left is hardly larger.

    Attributes:
        slot: The slot.
        step: First recorded step of those that confirm it.
        order: Where it stands in the step's data flow.
        format: Canonical name of the format that flushes.
        share: Of the elements that were not zero before rounding.
        origin: "shadow" as a shadow step measured it, "cast" as a library's cast did, "counts" of
            elements that would be flushed, "estimate" from the zeros and the shape of the tail.
        zeros: Share of zeros at `step`.
        rms: Root mean square at `step`, scaled.
        loss_scale: In force at `step`.
    """

    slot: str
    step: int
    order: float | None
    format: str
    share: float
    origin: str
    zeros: float
    rms: float
    loss_scale: float


def flushing(evidence: Evidence) -> list[Flushing]:
    """Returns the gradients that are flushed in part, by step and data flow.

    A flushed tail hurts nobody while the bulk is far above it: gradients count whose rms is below
    the format's smallest normal value, so that it is the bulk that is cut.
    """
    found = []
    losing = list(_losing(evidence))
    steps = sorted({int(step) for _, _, series, _ in losing for step in series.step})
    totals = evidence.totals_at(evenly(steps, _SAMPLED_STEPS)).by_slot() if losing else {}
    for slot, fmt, series, rounded in losing:
        share, origin = _measured(evidence, slot), "shadow"
        if share is None and rounded:
            known = totals.get(slot)
            share = 0.0 if known is None else float(estimate_flushed(known.stats, fmt).value)
            origin = "estimate"
        elif share is None:
            share, origin = float(np.median(series.flushed)), "counts"
        if share >= FLUSHED_SHARE:
            found.append(
                Flushing(
                    slot=slot,
                    step=int(series.step[0]),
                    order=evidence.order(slot),
                    format=fmt.name,
                    share=share,
                    origin=origin,
                    zeros=float(series.zeros[0]),
                    rms=float(series.rms[0]),
                    loss_scale=float(series.loss_scale[0]),
                )
            )
    return sorted(found, key=lambda each: (each.step, each.order is None, each.order or 0.0))


def _losing(evidence: Evidence) -> Iterator[tuple[str, Format, Series, bool]]:
    """Yields gradients that may be flushed, with the rows that say so from the confirmed one on."""
    for slot, info, series in evidence.by_role(*GRADIENT_ROLES):
        fmt = judged_format(info)
        full = series.fully
        if fmt is None or len(full) < CONFIRMATIONS:
            continue
        rounded = stored_in(info, fmt)
        losing = (full.rms < fmt.smallest_normal) & (full.rms > 0) & (full.nonfinite == 0)
        losing &= full.numel >= MIN_ELEMENTS
        losing &= (full.zeros > FLUSHED_SHARE) if rounded else (full.flushed >= FLUSHED_SHARE)
        at = first_confirmed(losing)
        if at is not None:
            yield slot, fmt, full.where(losing & (np.arange(len(full)) >= at)), rounded


def _measured(evidence: Evidence, slot: str) -> float | None:
    """Returns the share that shadow steps saw flushed; None without any."""
    shadow = evidence.shadows.get((slot,))
    if shadow is None:
        return None
    nonzero = float((shadow["sampled"] - shadow["zeros"]).sum())
    return float(shadow["flushed"].sum()) / nonzero if nonzero > 0 else None


@dataclass(frozen=True)
class ZeroGradient:
    """A gradient that is zero altogether.

    Attributes:
        slot: The slot.
        step: First recorded step of those that confirm it.
        order: Where it stands in the step's data flow.
        flushed: Whether a format flushed it, rather than that the layer is dead.
        format: Canonical name of that format; None where not flushed.
        before: The last gradient before it, in the order of backward, that is not zero; None where
            even the first is.
        before_amax: Its amax at that step, scaled; 0.0 without one.
        loss_scale: In force at that step.
    """

    slot: str
    step: int
    order: float | None
    flushed: bool
    format: str | None
    before: str | None
    before_amax: float
    loss_scale: float


def zero_gradients(evidence: Evidence) -> list[ZeroGradient]:
    """Returns gradients that are zero on recorded steps in a row, in the order of backward.

    Upstream of one all others are zero for the same reason, so each takes the verdict of the first:
    it was flushed where what came before it was close to the smallest number of its format, or
    where a library's cast made zeros of it; else the layer is dead.
    """
    found: list[ZeroGradient] = []
    last: tuple[str, Series] | None = None
    for slot, info, series in evidence.by_role(*GRADIENT_ROLES):
        zero, cast = _zero(series)
        at = first_confirmed(zero)
        if at is None or zero[at:].mean() < LASTING:
            # A weight's gradient leads nowhere.
            if not slot.endswith(":grad_weight") and len(series):
                last = (slot, series)
            continue
        step = int(series.step[at])
        before, amax = (None, 0.0) if last is None else (last[0], _amax_at(last[1], step))
        fmt = known_format(info.format) if info else None
        flushed = bool(cast[at]) or _is_flushed(evidence, slot, info, before, amax, step)
        earlier = _same_stretch(found, step)
        if earlier is not None:
            flushed = earlier.flushed or bool(cast[at])
        found.append(
            ZeroGradient(
                slot=slot,
                step=step,
                order=evidence.order(slot),
                flushed=flushed,
                format=fmt.name if fmt and flushed else None,
                before=before,
                before_amax=amax,
                loss_scale=float(series.loss_scale[at]),
            )
        )
    return found


def _same_stretch(found: list[ZeroGradient], step: int) -> ZeroGradient | None:
    """Returns the gradient, earlier in backward, whose zeros explain those from a step on."""
    return next((each for each in reversed(found) if each.step <= step and _leads_on(each)), None)


def _leads_on(zero: ZeroGradient) -> bool:
    return not zero.slot.endswith(":grad_weight") or zero.flushed


def _zero(series: Series) -> tuple[Bools, Bools]:
    """Returns on which recorded steps a tensor is all zero, and on which by a library's cast."""
    cast = series.cast_flushed >= 1.0
    zero = (series.amax == 0) & (series.nonfinite == 0) & (series.numel > 0)
    return zero | cast, cast


def _is_flushed(
    evidence: Evidence,
    slot: str,
    info: SlotInfo | None,
    before: str | None,
    amax: float,
    step: int,
) -> bool:
    fmt = judged_format(info)
    if fmt is None or slot not in evidence.slots:
        return False
    if before is None:
        losses = evidence.steps.loss[evidence.steps.step == step]
        # The loss has a gradient, and none of it is left from the first layer on. BF16 has the
        # range of FP32: there it had none.
        return fmt.name == "fp16" and not bool((losses == 0).any())
    return amax <= NEAR_FLUSHING * fmt.smallest_subnormal


def _amax_at(series: Series, step: int) -> float:
    at = max(int(np.searchsorted(series.step, step, side="right")) - 1, 0)
    return float(series.amax[at])
