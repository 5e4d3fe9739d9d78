"""Rules about the forward: what overflows, what is on its way there, what stands out."""

import math
from collections.abc import Iterator

import numpy as np

from numwatch.diagnose.confirm import Line, first_confirmed, fit_line
from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.failing import Failure, failed, failures
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.growth import foreseen
from numwatch.diagnose.rules.nonfinite import cure_of, ranges, severity_of, steps_failed, told
from numwatch.diagnose.thresholds import (
    ATTENTION_LOGIT,
    FIT_CORRELATION,
    OUTLIER_ELEMENTS,
    OUTLIER_RATIO,
)
from numwatch.formats import Format, get_format
from numwatch.record.slot_formats import judged_format
from numwatch.snapshot import SlotInfo

MAX_OTHERS = 20
_ATTENTION = ("attn", "attention")
_SCORES = ("softmax", "score", "logit")


def forward_overflow(evidence: Evidence) -> Iterator[Finding]:
    """An operation of the forward makes more than its format holds."""
    found = [each for each in failed(evidence, "forward") if each.overflow]
    if not found:
        return
    first = found[0]
    fmt = _format(evidence, first)
    line = _growth(evidence, first)
    figures = list(ranges(first))
    if first.count:
        figures.insert(0, Figure("elements not finite", float(first.count), first.step))
    grew = ""
    if line is not None:
        doublings = 100.0 * line.slope
        figures.append(Figure("doublings of its amax in 100 steps", doublings))
        if doublings > 1.0 and line.correlation >= FIT_CORRELATION:
            grew = f"; its amax had been doubling {doublings:.1f} times in 100 steps"
    what = told(first) if first.operation else f"{first.slot} leaves {fmt.name.upper()}"
    yield Finding(
        rule="forward-overflow",
        severity=severity_of(evidence, found),
        step=first.step,
        slot=first.slot,
        evidence=(*figures, steps_failed(evidence, found)),
        cause=f"{what} in the forward: {fmt.name.upper()} ends at {fmt.max:g}{grew}",
        cure=cure_of(
            first,
            "normalise what goes into it or compute it in FP32 "
            f"(`torch.autocast(device_type, enabled=False)`){_or_wider(fmt)}",
        ),
        source="IEEE 754: results above the largest value become infinite",
        order=first.order,
        others=tuple(
            dict.fromkeys(each.slot for each in found if each.slot and each.slot != first.slot)
        )[:MAX_OTHERS],
    )


def _or_wider(fmt: Format) -> str:
    """Returns a cure more for formats with less range than FP32."""
    if fmt.max >= get_format("bf16").max:
        return ""
    return ', or use `precision="bf16-mixed"`, whose range is that of FP32'


def activation_growth(evidence: Evidence) -> Iterator[Finding]:
    """A tensor's amax doubles steadily and will soon leave its format."""
    end = _first_failing(evidence)
    found = []
    for slot, info, series in evidence.by_role("input", "output"):
        fmt = judged_format(info)
        growth = None if fmt is None else foreseen(series.where(series.step < end), fmt)
        if fmt is not None and growth is not None:
            found.append((slot, growth, fmt))
    if not found:
        return
    # What grows first in the data flow makes the others grow.
    slot, growth, fmt = found[0]
    yield Finding(
        rule="activation-growth",
        severity="warning",
        step=growth.since,
        slot=slot,
        evidence=(
            Figure("amax", *growth.first),
            Figure("amax", *growth.last),
            Figure("doublings in 100 steps", 100.0 * growth.slope),
            Figure("step of overflow, extrapolated", float(growth.overflow)),
        ),
        cause=f"its amax doubles every {1.0 / growth.slope:.0f} steps and at this pace leaves "
        f"{fmt.name.upper()}, which ends at {fmt.max:g}, near step {growth.overflow}",
        cure="put a norm before it (`nn.LayerNorm`) or decay the weights, "
        f"`AdamW(weight_decay=0.1)`{_or_wider(fmt)}",
        source="policy: a line through log2 amax",
        order=evidence.order(slot),
        others=tuple(each[0] for each in found[1:])[:MAX_OTHERS],
    )


def attention_logit_growth(evidence: Evidence) -> Iterator[Finding]:
    """Attention logits grow to where every run known diverged."""
    found = []
    for slot, info, series in evidence.by_role("input", "output"):
        if not _is_attention_logit(info):
            continue
        at = first_confirmed(series.amax >= ATTENTION_LOGIT)
        if at is not None:
            found.append((int(series.step[at]), evidence.order(slot) or 0.0, slot, series, at))
    if not found:
        return
    step, _, slot, series, at = min(found, key=lambda each: each[:3])
    yield Finding(
        rule="attention-logit-growth",
        severity="critical",
        step=step,
        slot=slot,
        evidence=(
            Figure("amax", float(series.amax[at]), step),
            Figure(
                "largest amax", float(series.amax.max()), int(series.step[series.amax.argmax()])
            ),
            Figure("amax", float(series.amax[0]), int(series.step[0])),
        ),
        cause=f"attention logits have grown to {series.amax[at]:.2g}; their softmax is one-hot, "
        "and every run known to come above 1e4 diverged",
        cure="normalise queries and keys (`nn.RMSNorm(head_dim)` on each before the product), or "
        "lower the learning rate of their projection",
        source="Wortsman et al. 2023 (2309.14322), section 3.1",
        order=evidence.order(slot),
        others=tuple(each[2] for each in found if each[2] != slot)[:MAX_OTHERS],
    )


def outlier_channels(evidence: Evidence) -> Iterator[Finding]:
    """A few elements stand far above the rest, which a scale for the whole tensor must flush."""
    found = []
    for slot, _, series in evidence.by_role("input", "output", "weight"):
        full = series.fully.where(series.fully.numel >= OUTLIER_ELEMENTS)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = full.amax / (full.rms / np.sqrt(1.0 - full.zeros))
        at = first_confirmed((ratio >= OUTLIER_RATIO) & (full.nonfinite == 0))
        if at is not None:
            found.append((int(full.step[at]), evidence.order(slot) or 0.0, slot, float(ratio[at])))
    if not found:
        return
    step, _, slot, value = min(found)
    worst = max(found, key=lambda each: each[3])
    yield Finding(
        rule="outlier-channels",
        severity="info",
        step=step,
        slot=slot,
        evidence=(
            Figure("amax over rms of the non-zero elements", value, step),
            Figure(f"the same at {worst[2]}", worst[3], worst[0]),
        ),
        cause=f"its largest element is {value:.0f} times its rms, so one scale for the whole "
        "tensor leaves little of an 8-bit format to the rest",
        cure='before FP8 scale it by row or block (`Float8Training("rowwise")`), or smooth its '
        "channels into the weights after it",
        source="2409.12517: outlier channels before FP8 training diverges",
        order=evidence.order(slot),
        others=tuple(each[2] for each in found if each[2] != slot)[:MAX_OTHERS],
    )


def _first_failing(evidence: Evidence) -> float:
    """Returns the first step whose forward was not finite; inf where none was."""
    found = (each.step for each in evidence.once(failures) if each.phase != "backward")
    return min(found, default=math.inf)


def _growth(evidence: Evidence, failure: Failure) -> Line | None:
    """Returns the line through log2 amax of what failed, up to there; None where not seen."""
    slot = failure.slot or ""
    names = [slot, f"{slot}:output", f"{slot}:input"]
    for name in names:
        series = evidence.series(name)
        before = series.where(
            (series.step < failure.step) & (series.amax > 0) & (series.nonfinite == 0)
        )
        line = fit_line(before.step, np.log2(before.amax))
        if line is not None:
            return line
    return None


def _format(evidence: Evidence, failure: Failure) -> Format:
    """Returns the format that was left: the slot's, else the narrowest the run computes in."""
    fmt = judged_format(evidence.slots.get(failure.slot or ""))
    if fmt is not None:
        return fmt
    dtypes = {str(taken.get("dtype")) for taken in failure.inputs}
    if "float16" in dtypes or evidence.run.precision.startswith("16"):
        return get_format("fp16")
    return get_format("bf16" if "bfloat16" in dtypes else "fp32")


def _is_attention_logit(info: SlotInfo | None) -> bool:
    """Whether a slot holds attention logits: what a softmax of an attention takes."""
    if info is None:
        return False
    path, kind = info.module.lower(), info.module_class.lower()
    within = any(word in path for word in _ATTENTION)
    last = path.rpartition(".")[2]
    softmax = "softmax" in kind or "softmax" in last
    scores = any(word in last or word in kind for word in _SCORES)
    return within and ((softmax or scores) if info.role == "input" else scores and not softmax)


RULES = (forward_overflow, activation_growth, attention_logit_growth, outlier_channels)
