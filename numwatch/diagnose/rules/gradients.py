"""Rules about gradients: flushed by a format, zero for good, or of another size in each layer."""

from collections.abc import Callable, Iterator

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Bools, Evidence, Floats, Series
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.flushing import Flushing, ZeroGradient, flushing, zero_gradients
from numwatch.diagnose.scales import higher_scale
from numwatch.diagnose.thresholds import (
    CONFIRMATIONS,
    EXPLODING,
    FLUSHED_SHARE,
    LOSS_RISE,
    MIN_DEPTH,
    MIN_TREND,
    VANISHING,
)
from numwatch.snapshot import GRADIENT_ROLES, path_of

MAX_OTHERS = 20
_MICIKEVICIUS = "Micikevicius et al. 2017, section 3.2"
_E5M2 = 'gradients in E5M2, with a scale for each tensor: `Float8Training("tensorwise")`'
_HOW = {
    "shadow": "as a shadow step measured",
    "counts": "by its histogram",
    "estimate": "by an estimate from its tail",
}


def gradient_underflow(evidence: Evidence) -> Iterator[Finding]:
    """Gradients are so small that their format turns a good part of them to zero."""
    found = evidence.once(flushing)
    if not found:
        return
    first = found[0]
    worst = max(each.share for each in found)
    yield Finding(
        rule="gradient-underflow",
        severity="warning",
        step=first.step,
        slot=first.slot,
        evidence=(
            Figure("flushed, share", first.share),
            Figure("zeros, share", first.zeros, first.step),
            Figure("rms (scaled)", first.rms, first.step),
            Figure("flushed at most, share", worst),
            Figure("loss scale", first.loss_scale, first.step),
        ),
        cause=f"{first.share:.0%} of the gradient {_HOW[first.origin]} is below what "
        f"{first.format.upper()} holds and becomes zero, and what is left is hardly larger",
        cure=higher_scale(evidence),
        source=_MICIKEVICIUS,
        order=first.order,
        others=tuple(each.slot for each in found[1 : MAX_OTHERS + 1]),
    )


def layer_flushed(evidence: Evidence) -> Iterator[Finding]:
    """All of a layer's gradient is flushed, so that it and all before it stand still."""
    found = [each for each in evidence.once(zero_gradients) if each.flushed]
    if not found:
        return
    first = _first(found)
    fmt = (first.format or "the format").upper()
    figures = [Figure("loss scale", first.loss_scale, first.step)]
    if first.before is not None:
        figures.insert(0, Figure(f"amax of {first.before} (scaled)", first.before_amax, first.step))
    yield Finding(
        rule="layer-flushed",
        severity="critical",
        step=first.step,
        slot=first.slot,
        evidence=(*figures, Figure("gradients that are zero altogether", float(len(found)))),
        cause=f"every element of this gradient is below what {fmt} holds and becomes zero, so this "
        "layer and all before it do not learn",
        cure=higher_scale(evidence) if fmt == "FP16" else _E5M2,
        source=_MICIKEVICIUS,
        order=first.order,
        others=tuple(each.slot for each in found if each is not first)[:MAX_OTHERS],
    )


def dead_layer(evidence: Evidence) -> Iterator[Finding]:
    """A layer's gradient is exactly zero while those after it are not, and no format did it."""
    found = [each for each in evidence.once(zero_gradients) if not each.flushed]
    found = [each for each in found if each.before is not None]
    if not found:
        return
    first = _first(found)
    source = _zero_forward(evidence, {path_of(each.slot) for each in found}, first.step)
    slot = first.slot if source is None else source
    what = f"the gradient of {path_of(slot)} is" if source is None else f"what {slot} sees is"
    yield Finding(
        rule="dead-layer",
        severity="warning",
        step=first.step,
        slot=slot,
        evidence=(
            Figure(f"amax of {first.before} (scaled)", first.before_amax, first.step),
            Figure("gradients that are zero altogether", float(len(found)), first.step),
        ),
        cause=f"{what} exactly zero at every step, though gradients well within their format "
        "arrive: no rounding, but units that are never on",
        cure="look at what feeds it, a bias or a scale that switches every unit off: initialise it "
        "anew, or use `nn.LeakyReLU(0.01)` in place of `nn.ReLU()`",
        source="policy; AWS SageMaker Debugger's DeadRelu asks for 1 % of active units",
        order=evidence.order(slot),
        others=tuple(each.slot for each in found if each.slot != slot)[:MAX_OTHERS],
    )


def loss_rises_while_flushing(evidence: Evidence) -> Iterator[Finding]:
    """Gradients are flushed in part and the loss rises: the steps no longer point downhill."""
    start = _flushing_since(evidence)
    if start is None:
        return
    slot, step, share = start
    steps = evidence.steps
    losses = steps.loss[(steps.step >= step) & np.isfinite(steps.loss)]
    if len(losses) < MIN_TREND:
        return
    third = len(losses) // 3
    early, late = losses[:third], losses[-third:]
    rise = float(np.median(late) - np.median(early))
    noise = float(np.median(np.abs(early - np.median(early))))
    if rise <= max(LOSS_RISE * abs(float(np.median(early))), 2.0 * noise):
        return
    yield Finding(
        rule="loss-rises-while-flushing",
        severity="critical",
        step=step,
        slot=slot,
        evidence=(
            Figure("loss, median of the first third", float(np.median(early))),
            Figure("loss, median of the last third", float(np.median(late))),
            Figure("flushed, share", share, step),
        ),
        cause="the loss rises while part of the gradients is flushed to zero; were all of them, it "
        "would stand still",
        cure=higher_scale(evidence)
        if any(each.format == "fp16" for each in evidence.once(flushing))
        else _E5M2,
        source="DeepSeek-V3 (2024), appendix B.2; FP8 gradients need range",
        order=evidence.order(slot),
    )


def vanishing_gradients(evidence: Evidence) -> Iterator[Finding]:
    """Gradients shrink from layer to layer until the first ones hardly move."""
    yield from _across_depth(
        evidence,
        "vanishing-gradients",
        lambda ratio: ratio < VANISHING,
        "shrink",
        "residual connections, `nn.LayerNorm` between layers, or `nn.ReLU()`/`nn.GELU()` in place "
        "of saturating activations",
        "AWS SageMaker Debugger, VanishingGradient; Hochreiter 1991",
    )


def exploding_gradients(evidence: Evidence) -> Iterator[Finding]:
    """Gradients grow from layer to layer towards the input."""
    yield from _across_depth(
        evidence,
        "exploding-gradients",
        lambda ratio: ratio > EXPLODING,
        "grow",
        "smaller initial weights (`nn.init.kaiming_normal_`), a norm between layers, and "
        "`Trainer(gradient_clip_val=1.0)`",
        "Pascanu et al. 2013",
    )


def _across_depth(
    evidence: Evidence,
    rule: str,
    holds: Callable[[Floats], Bools],
    verb: str,
    cure: str,
    source: str,
) -> Iterator[Finding]:
    layers = [(slot, _finite(series)) for slot, _, series in evidence.by_role("grad_output")]
    layers = [(slot, series) for slot, series in layers if len(series) >= CONFIRMATIONS]
    if len(layers) < MIN_DEPTH or any(evidence.order(slot) is None for slot, _ in layers):
        return
    last_slot, last = layers[0]
    for slot, series in layers[MIN_DEPTH - 1 :]:
        common, mine, its = np.intersect1d(series.step, last.step, return_indices=True)
        if not len(common):
            continue
        ratios = series.rms[mine] / last.rms[its]
        at = first_confirmed(holds(ratios))
        if at is None:
            continue
        step = int(common[at])
        depth = [s for s, _ in layers].index(slot)
        ratio = float(ratios[at])
        yield Finding(
            rule=rule,
            severity="warning",
            step=step,
            slot=slot,
            evidence=(
                Figure(f"rms over that at {last_slot}", ratio, step),
                Figure("layers between them", float(depth), step),
                Figure("factor a layer", ratio ** (1.0 / depth), step),
            ),
            cause=f"gradients {verb} by a factor of {_factor(ratio)} from {path_of(last_slot)} to "
            f"{path_of(slot)}, {depth} layers before it",
            cure=cure,
            source=source,
            order=evidence.order(slot),
            others=tuple(s for s, _ in layers[depth + 1 :])[:MAX_OTHERS],
        )
        return


def _finite(series: Series) -> Series:
    full = series.fully
    return full.where((full.nonfinite == 0) & (full.rms > 0))


def _first(found: list[ZeroGradient]) -> ZeroGradient:
    return min(found, key=lambda each: (each.step, each.order is None, each.order or 0.0))


def _zero_forward(evidence: Evidence, modules: set[str], step: int) -> str | None:
    """Returns the first forward slot of modules that is all zero at a step."""
    for slot, info, series in evidence.by_role("input", "output"):
        if info is None or info.module not in modules:
            continue
        at = int(np.searchsorted(series.step, step))
        here = slice(at, at + CONFIRMATIONS)
        if (
            len(series.amax[here])
            and not series.amax[here].any()
            and not series.nonfinite[here].any()
        ):
            return slot
    return None


def _flushing_since(evidence: Evidence) -> tuple[str, int, float] | None:
    """Returns the first gradient that is flushed in part, since when, and how much of it."""
    found: list[Flushing] = evidence.once(flushing)
    parts = [(each.step, each.order, each.slot, each.share) for each in found]
    for slot, _, series in evidence.by_role(*GRADIENT_ROLES):
        cast = series.where(~np.isnan(series.cast_flushed))
        at = first_confirmed((cast.cast_flushed >= FLUSHED_SHARE) & (cast.cast_flushed < 1.0))
        if at is not None:
            order = evidence.order(slot)
            parts.append((int(cast.step[at]), order, slot, float(cast.cast_flushed[at])))
    if not parts:
        return None
    step, _, slot, share = min(parts, key=lambda each: (each[0], each[1] is None, each[1] or 0.0))
    return slot, step, share


def _factor(ratio: float) -> str:
    return f"{max(ratio, 1.0 / ratio):.1e}"


RULES = (
    layer_flushed,
    gradient_underflow,
    dead_layer,
    loss_rises_while_flushing,
    vanishing_gradients,
    exploding_gradients,
)
