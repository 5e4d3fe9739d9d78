"""What to compute in, FP16 or BF16, and with which loss scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from numwatch.formats import get_format
from numwatch.plan import LossScale
from numwatch.recipes import Window, loss_scale_window
from numwatch.recommend.thresholds import (
    FP16_HEADROOM,
    HIGHEST_START,
    ROOM,
    SCALE_MARGIN,
    STATIC_WIDTH,
)
from numwatch.record.gradients import gradient_groups
from numwatch.record.totals import SlotTotals, Totals
from numwatch.snapshot import FORWARD_ROLES, SlotInfo, role_of

GROWTH_INTERVAL = 2000
"""`torch.amp.GradScaler`'s own."""


@dataclass(frozen=True)
class Amp:
    """A compute format with its loss scale and the reason for both.

    Attributes:
        compute: `fp16` or `bf16`.
        loss_scale: For FP16 alone.
        reason: Why this format.
    """

    compute: str
    loss_scale: LossScale | None
    reason: str


def choose_amp(totals: Totals, slots: Mapping[str, SlotInfo], compute: str) -> Amp:
    """Returns FP16 where forward and gradients fit it with room, else BF16.

    A run in FP16 stays there where any loss scale fits; another goes there for the three more bits
    of precision alone, so its window must be wide.

    Args:
        totals: Of the run's rows.
        slots: What is known of its slots.
        compute: What it computed in: `fp16`, `bf16` or `fp32`.
    """
    by_slot = totals.by_slot()
    fp16 = get_format("fp16")
    forward = {name: one for name, one in by_slot.items() if role_of(name) in FORWARD_ROLES}
    left = next((one for name, one in forward.items() if _left_fp16(one, slots.get(name))), None)
    if left is not None:
        return Amp("bf16", None, f"{left.slot} left FP16 in this run")
    hot = max(forward.values(), key=lambda one: one.amax, default=None)
    if hot is not None and hot.amax > 0:
        room = math.log2(fp16.max) - math.log2(hot.amax)
        if room < FP16_HEADROOM:
            return Amp(
                "bf16",
                None,
                f"FP16 would leave {max(room, 0.0):.1f} bits above {hot.slot}, amax {hot.amax:.3g}",
            )
    window = loss_scale_window(gradient_groups(totals, slots), "fp16")
    if window.low is None or window.high is None or window.empty:
        return Amp("bf16", None, _no_scale(window))
    low, high = window.low, window.high
    fits = f"forward and gradients fit FP16 at loss scales from 2^{low} to 2^{high}"
    if compute != "fp16" and high - low < ROOM:
        return Amp("bf16", None, f"{fits} alone, a window to fall out of; BF16 needs no scale")
    return Amp(
        "fp16",
        _loss_scale(low, high),
        f"{fits}, and it has three bits of precision more than BF16",
    )


def _left_fp16(totals: SlotTotals, info: SlotInfo | None) -> bool:
    infinite = totals.posinfs + totals.neginfs > 0
    return infinite and info is not None and info.format == "fp16"


def _no_scale(window: Window) -> str:
    if window.high is None or window.low is None:
        return "what was recorded of the gradients does not tell which loss scale FP16 would need"
    return (
        f"no loss scale fits FP16: below 2^{window.low} gradients are flushed, above "
        f"2^{window.high} they overflow"
    )


def _loss_scale(low: int, high: int) -> LossScale:
    """The scale to start from: the middle of a wide window for good, else near its top."""
    width = high - low
    if width >= STATIC_WIDTH:
        exponent = max(low, min((low + high + 1) // 2, HIGHEST_START))
        return LossScale(
            2.0**exponent,
            None,
            f"the middle of a window of {width} powers of two: it needs no search",
        )
    exponent = max(low, min(high - SCALE_MARGIN, HIGHEST_START))
    return LossScale(
        2.0**exponent,
        GROWTH_INTERVAL,
        f"gradients are flushed below 2^{low} and overflow above 2^{high}",
    )
