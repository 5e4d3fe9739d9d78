"""A run's gradients slot by slot and loss scale by loss scale, as recipes want them."""

from collections.abc import Mapping

from numwatch.recipes import GradientGroup
from numwatch.record.totals import Totals
from numwatch.snapshot import GRADIENT_ROLES, SlotInfo


def gradient_groups(totals: Totals, slots: Mapping[str, SlotInfo]) -> list[GradientGroup]:
    """Returns the rows of gradient slots, merged by slot and by the loss scale in force.

    Of amax-only rows there is a group of its own, which tells what overflows and nothing else.

    Args:
        totals: See `read_totals`.
        slots: What is known of each slot: whether its tensors were in FP16 before they were seen.
    """
    return [
        GradientGroup(slot, loss_scale, stats, in_fp16(slots.get(slot)))
        for found in (totals.by_loss_scale(GRADIENT_ROLES), totals.extremes(GRADIENT_ROLES))
        for (slot, loss_scale), stats in found.items()
    ]


def in_fp16(info: SlotInfo | None) -> bool:
    """Whether a slot's tensors were in FP16 before they were seen, their tails gone."""
    return info is not None and info.rounded and info.format == "fp16"
