"""Which loss scale a run's FP16 gradients would want."""

import math

from numwatch.diagnose.evidence import Evidence, evenly
from numwatch.formats import get_format
from numwatch.recipes import Window, loss_scale_window
from numwatch.record.gradients import gradient_groups
from numwatch.snapshot import GRADIENT_ROLES, role_of

FP16 = get_format("fp16")
_SAMPLED_STEPS = 16
_MARGIN = 2
_HIGHEST = 24
_UNKNOWN = 16


def scale_window(evidence: Evidence) -> Window:
    """Returns the window of loss scales that fit the gradients of a sample of full steps."""
    full = {
        int(step)
        for _, _, series in evidence.by_role(*GRADIENT_ROLES)
        for step in series.fully.where(series.fully.nonfinite == 0).step
    }
    totals = evidence.totals_at(evenly(sorted(full), _SAMPLED_STEPS))
    groups = gradient_groups(totals, evidence.slots)
    return loss_scale_window([each for each in groups if role_of(each.slot) in GRADIENT_ROLES])


def suggested_exponent(evidence: Evidence) -> int:
    """Returns log2 of a loss scale that leaves two powers of two to the largest gradient seen.

    At most 24, and 16, which is GradScaler's own start, where none was seen.
    """
    largest = 0.0
    for _, _, series in evidence.by_role(*GRADIENT_ROLES):
        fine = series.unscaled_amax[(series.nonfinite == 0) & (series.loss_scale > 0)]
        if len(fine):
            largest = max(largest, float(fine.max()))
    if not 0 < largest < math.inf:
        return _UNKNOWN
    return min(math.floor(math.log2(FP16.max / largest)) - _MARGIN, _HIGHEST)


def higher_scale(evidence: Evidence) -> str:
    """Returns the cure for FP16 gradients that are flushed."""
    exponent = evidence.once(suggested_exponent)
    if not _has_scaler(evidence):
        return (
            '`precision="16-mixed"`, whose GradScaler multiplies the loss, or '
            '`precision="bf16-mixed"`, which needs none'
        )
    return (
        f"`torch.amp.GradScaler(init_scale=2.0**{exponent})`, growing as by default, or "
        '`precision="bf16-mixed"`, which needs no loss scale'
    )


def _has_scaler(evidence: Evidence) -> bool:
    scaled = (evidence.steps.scale_before != 1.0) | (evidence.steps.scale_after != 1.0)
    return bool(scaled.any()) or evidence.run.precision.startswith("16-mixed")
