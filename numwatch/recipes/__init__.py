"""How a scale is chosen over time: pure functions."""

from typing import TYPE_CHECKING

from numwatch.on_demand import on_demand
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling, RowScaling
from numwatch.recipes.collapse import Collapse, CollapseAlarm
from numwatch.recipes.gradients import GradientGroup
from numwatch.recipes.loss_scalers import (
    GradScalerRecipe,
    LossScaler,
    MegatronScaler,
    StaticLossScale,
    loss_scales_over,
)
from numwatch.recipes.loss_scaling import next_loss_scale, skips_to_zero
from numwatch.recipes.scaling import (
    CurrentScaling,
    DelayedScaling,
    StaticScaling,
    TensorScaling,
)
from numwatch.recipes.spec import AnyRecipe, Recipe, parse_any_recipe, parse_recipe, recipe_text
from numwatch.recipes.window import ScaleLine, StepsInside, Window, inside, loss_scale_window

if TYPE_CHECKING:
    from numwatch.recipes.stepping import scales_over

__all__ = [
    "AnyRecipe",
    "BlockScaling",
    "Collapse",
    "CollapseAlarm",
    "CurrentScaling",
    "DelayedScaling",
    "GradScalerRecipe",
    "GradientGroup",
    "LossScaler",
    "MXScaling",
    "MegatronScaler",
    "NVFP4Scaling",
    "Recipe",
    "RowScaling",
    "ScaleLine",
    "StaticLossScale",
    "StaticScaling",
    "StepsInside",
    "TensorScaling",
    "Window",
    "inside",
    "loss_scale_window",
    "loss_scales_over",
    "next_loss_scale",
    "parse_any_recipe",
    "parse_recipe",
    "recipe_text",
    "scales_over",
    "skips_to_zero",
]

on_demand(__name__, {"numwatch.recipes.stepping": ("scales_over",)})
