"""Which loss scales the gradients of one step fit, as named numbers."""

from collections import defaultdict
from collections.abc import Mapping

from numwatch.recipes import GradientGroup, loss_scale_window
from numwatch.record.gradients import in_fp16
from numwatch.record.totals import merged_reals
from numwatch.report.figures import log2_or_none
from numwatch.report.tb_tags import WINDOW_GROUP
from numwatch.snapshot import GRADIENT_ROLES, SlotInfo, role_of
from numwatch.stats import TensorStats, unpack_row
from numwatch.tensor_rows import Rows


def window_scalars(
    rows: Rows, slots: Mapping[str, SlotInfo], loss_scale: float
) -> dict[str, float | None]:
    """Returns log2 of the loss scale and of both ends of FP16's window for these rows.

    All three or none, so that they can be drawn as one chart: where all gradients are zero, or no
    scale is low or high enough, there is no window to be inside of. All slots are merged before
    they are judged, which changes neither end but for estimates of what FP16 had flushed already.

    Args:
        rows: Full rows.
        slots: What is known of each slot: whether its tensors were in FP16 already.
        loss_scale: In force during the step.
    """
    window = loss_scale_window(_groups(rows, slots), "fp16")
    found = (log2_or_none(loss_scale), window.low, window.high)
    if None in found:
        return {}
    names = ("loss_scale_log2", "low_log2", "high_log2")
    return {f"{WINDOW_GROUP}/{name}": value for name, value in zip(names, found, strict=True)}


def _groups(rows: Rows, slots: Mapping[str, SlotInfo]) -> list[GradientGroup]:
    members: dict[tuple[float, bool], list[int]] = defaultdict(list)
    for i, slot in enumerate(rows.slots):
        if role_of(slot) in GRADIENT_ROLES:
            members[float(rows.loss_scales[i]), in_fp16(slots.get(slot))].append(i)
    return [
        GradientGroup("", scale, _merged(rows, places), rounded)
        for (scale, rounded), places in members.items()
    ]


def _merged(rows: Rows, places: list[int]) -> TensorStats:
    return unpack_row(rows.counts[places].sum(axis=0), merged_reals(rows.reals[places]))
