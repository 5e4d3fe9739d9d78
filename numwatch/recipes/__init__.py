"""How a scale is chosen over time: pure functions."""

from numwatch.recipes.collapse import Collapse, CollapseAlarm
from numwatch.recipes.gradients import GradientGroup
from numwatch.recipes.loss_scaling import next_loss_scale, skips_to_zero
from numwatch.recipes.window import ScaleLine, StepsInside, Window, inside, loss_scale_window

__all__ = [
    "Collapse",
    "CollapseAlarm",
    "GradientGroup",
    "ScaleLine",
    "StepsInside",
    "Window",
    "inside",
    "loss_scale_window",
    "next_loss_scale",
    "skips_to_zero",
]
