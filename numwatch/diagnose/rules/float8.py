"""Rules about casts to FP8: what their scales clamp, and what falls below their range."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Doubles, Evidence, Ints
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.parameters import first_and_others
from numwatch.diagnose.thresholds import CAST_FLUSHED, CAST_SATURATED, PEAK_LOSS
from numwatch.record.slot_formats import is_block_format, known_format
from numwatch.snapshot import GRADIENT_ROLES, ROLES, SlotInfo, role_of

_RECIPES = "FP8 recipes: Transformer Engine, delayed and current scaling"
_RANGE = "Micikevicius et al. 2022 (2209.05433): E4M3 forward, E5M2 for gradients"
_HALF = 0.5


@dataclass(frozen=True, eq=False)
class Pair:
    """A tensor before and after a module that keeps its shape, on the steps recorded in full.

    Attributes:
        info: Of the output.
        step: Int [n].
        peaks: Float [n] each, amax over rms of input and output.
        amax: Float [n] each, their amax.
        zeros: Float [n] each, their shares of zeros.
        mean: Float [n] each, their means.
        deviation: Float [n] each, their standard deviations.
    """

    info: SlotInfo
    step: Ints
    peaks: tuple[Doubles, Doubles]
    amax: tuple[Doubles, Doubles]
    zeros: tuple[Doubles, Doubles]
    mean: tuple[Doubles, Doubles]
    deviation: tuple[Doubles, Doubles]


def fp8_saturation(evidence: Evidence) -> Iterator[Finding]:
    """Elements that a scale which no longer fits clamps to the format's largest value."""
    held: dict[str, tuple[int, tuple[Figure, ...]]] = {}
    for slot, info, series in evidence.by_role(*ROLES):
        if info is not None and is_block_format(info.format):
            continue  # its scales are of the tensor at hand, and clip by rule
        full = series.fully
        at = first_confirmed(full.cast_saturated >= CAST_SATURATED)
        if at is not None:
            step, share = int(full.step[at]), float(full.cast_saturated[at])
            scale = Figure("scale", float(full.cast_scale[at]), step)
            held[slot] = step, (Figure("saturated, share", share, step), scale)
    for pair in evidence.once(float8_pairs):
        limit = known_format(pair.info.format)
        clamped = (pair.peaks[0] >= PEAK_LOSS * pair.peaks[1]) & (
            pair.amax[1] >= (limit.max if limit else np.inf)
        )
        at = first_confirmed(clamped)
        if at is not None:
            step = int(pair.step[at])
            held[pair.info.slot] = (
                step,
                (
                    Figure("amax over rms after the cast", float(pair.peaks[1][at]), step),
                    Figure("amax over rms before it", float(pair.peaks[0][at]), step),
                    Figure("amax before it", float(pair.amax[0][at]), step),
                ),
            )
    if not held:
        return
    slot, step, others = _first(evidence, held)
    yield Finding(
        rule="fp8-saturation",
        severity="warning",
        step=step,
        slot=slot,
        order=evidence.order(slot),
        evidence=held[slot][1],
        cause=f"{slot} has outgrown its FP8 scale: what is above the format's largest value is "
        "clamped",
        cure="scale by the current amax, `DynamicScaling` or `Float8CurrentScaling()`, or a "
        "shorter history, `DelayedScaling(amax_history_len=16)`",
        source=_RECIPES,
        others=others,
    )


def fp8_flushing(evidence: Evidence) -> Iterator[Finding]:
    """Elements that a cast to FP8 turns into zeros: more range than the format has."""
    held: dict[str, tuple[int, float]] = {}
    for slot, info, series in evidence.by_role(*ROLES):
        if info is not None and is_block_format(info.format):
            continue  # likewise
        full = series.fully
        at = first_confirmed(full.cast_flushed >= CAST_FLUSHED)
        if at is not None:
            held[slot] = int(full.step[at]), float(full.cast_flushed[at])
    for pair in evidence.once(float8_pairs):
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (pair.zeros[1] - pair.zeros[0]) / (1.0 - pair.zeros[0])
        at = first_confirmed(share >= CAST_FLUSHED)
        if at is not None:
            held[pair.info.slot] = int(pair.step[at]), float(share[at])
    gradients = {slot: entry for slot, entry in held.items() if role_of(slot) in GRADIENT_ROLES}
    forward = {slot: entry for slot, entry in held.items() if slot not in gradients}
    if gradients:
        slot, _, others = _first(evidence, gradients)
        yield _flushing(
            evidence,
            gradients[slot],
            slot,
            others,
            "warning",
            'gradients in E5M2, `Float8Training("tensorwise")` as it is, or scales by row, '
            '`Float8Training("rowwise")`',
        )
    if forward:
        slot, _, others = _first(evidence, forward)
        yield _flushing(
            evidence,
            forward[slot],
            slot,
            others,
            "warning" if forward[slot][1] >= _HALF else "info",
            'scales by row, `Float8Training("rowwise")`, or `Float8Training(exclude=[…])` for this '
            "module",
        )


RULES = (fp8_saturation, fp8_flushing)


def float8_pairs(evidence: Evidence) -> list[Pair]:
    """Returns the modules that cast to FP8: whose outputs are stored so and inputs are not."""

    def casts(before: SlotInfo, after: SlotInfo) -> bool:
        return _is_float8(after) and not _is_float8(before)

    return [
        pair
        for slot, info in evidence.slots.items()
        if info.role == "output"
        for before in [evidence.slots.get(f"{info.module}:input")]
        if before is not None and casts(before, info)
        for pair in [pair_of(evidence, before.slot, slot)]
        if pair is not None
    ]


def pair_of(evidence: Evidence, before: str, after: str) -> Pair | None:
    """Returns two slots on the steps at which both were measured and have as many elements."""
    first, second = evidence.series(before).fully, evidence.series(after).fully
    _, here, there = np.intersect1d(first.step, second.step, return_indices=True)
    one, two = first.where(here), second.where(there)
    alike = one.numel == two.numel
    both = (one.where(alike), two.where(alike))
    if not alike.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rms = [series.rms.astype(np.float64) for series in both]
        mean = [series.mean.astype(np.float64) for series in both]
        spread = [np.sqrt(np.maximum(r * r - m * m, 0.0)) for r, m in zip(rms, mean, strict=True)]
        return Pair(
            info=evidence.slots[after],
            step=both[0].step,
            peaks=(both[0].amax / rms[0], both[1].amax / rms[1]),
            amax=(both[0].amax, both[1].amax),
            zeros=(both[0].zeros.astype(np.float64), both[1].zeros.astype(np.float64)),
            mean=(mean[0], mean[1]),
            deviation=(spread[0], spread[1]),
        )


def _is_float8(info: SlotInfo) -> bool:
    return bool(info.dtype) and str(info.dtype).startswith("float8") and info.format is not None


def _first(
    evidence: Evidence, held: Mapping[str, tuple[int, Any]]
) -> tuple[str, int, tuple[str, ...]]:
    return first_and_others(evidence, [(slot, entry[0]) for slot, entry in held.items()])


def _flushing(
    evidence: Evidence,
    entry: tuple[int, float],
    slot: str,
    others: tuple[str, ...],
    severity: str,
    cure: str,
) -> Finding:
    step, share = entry
    info = evidence.slots.get(slot)
    fmt = info.format if info is not None and _is_float8(info) else None
    name = (fmt or "FP8").upper()
    return Finding(
        rule="fp8-flushing",
        severity=severity,
        step=step,
        slot=slot,
        order=evidence.order(slot),
        evidence=(Figure("flushed by the cast, share", share, step),),
        cause=f"{share:.0%} of {slot} is too small beside its largest element and becomes 0 in the "
        f"cast to {name}",
        cure=cure,
        source=_RANGE,
        others=others,
    )
