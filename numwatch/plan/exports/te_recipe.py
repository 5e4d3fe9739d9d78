"""Transformer Engine's recipe for a kind of module, which Megatron-LM trains with too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import Kind, kind_text
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling
from numwatch.recipes.spec import Recipe, parse_recipe

POWERS_OF_TWO = "NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES"
"""Read when Transformer Engine is imported. The argument `use_power_2_scales` does not reach the
modules, which take what stands in the class (2.20, `_customize_quantizers_float8_current_scaling`).
"""
_PAIRS = {("e4m3", "e4m3"): "E4M3", ("e4m3", "e5m2"): "HYBRID"}
_BLOCK_DIMS = ("x_block_scaling_dim", "w_block_scaling_dim", "grad_block_scaling_dim")
_USUAL_DIMS = (1, 2, 1)


@dataclass(frozen=True)
class TERecipe:
    """A recipe object of `transformer_engine.common.recipe`.

    Attributes:
        name: Its class.
        arguments: What it is made with, as code.
        environment: Variables it needs when Transformer Engine is imported.
    """

    name: str
    arguments: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)


def te_recipe(kind: Kind) -> TERecipe:
    """Returns the recipe that rounds all three operands as planned.

    Raises:
        NumwatchError: Transformer Engine has none.
    """
    formats, texts, roundings = zip(*kind, strict=True)
    recipes = [parse_recipe(text) for text in texts]
    nearest = set(roundings) == {"nearest"}
    if all(isinstance(recipe, NVFP4Scaling) for recipe in recipes):
        found = _nvfp4(recipes, roundings)
    elif not nearest:
        found = None
    elif all(isinstance(recipe, BlockScaling) for recipe in recipes):
        found = _blocks(formats)
    else:
        found = _alike(formats, recipes)
    if found is None:
        raise NumwatchError(f"Transformer Engine has no recipe for {kind_text(kind)}")
    return found


def _alike(formats: tuple[str, ...], recipes: list[Recipe]) -> TERecipe | None:
    """Recipes that scale all operands by one rule."""
    x, weight, gradient = (name.removeprefix("mxfp8-") for name in formats)
    pair = _PAIRS.get((x, gradient))
    rule = recipes[0]
    if pair is None or weight != x or any(recipe != rule for recipe in recipes):
        return None
    fp8_format = {"fp8_format": f"Format.{pair}"}
    if isinstance(rule, DelayedScaling):
        return TERecipe(
            "DelayedScaling",
            {
                "margin": str(rule.margin),
                **fp8_format,
                "amax_history_len": str(rule.history),
                "amax_compute_algo": f'"{rule.algorithm}"',
            },
        )
    if isinstance(rule, CurrentScaling):
        return TERecipe(
            "Float8CurrentScaling", fp8_format, {POWERS_OF_TWO: "1"} if rule.power_of_two else {}
        )
    if isinstance(rule, MXScaling) and rule.rule == "rceil":
        return TERecipe("MXFP8BlockScaling", fp8_format)
    return None


def _blocks(formats: tuple[str, ...]) -> TERecipe | None:
    dims = tuple(2 if name == "block-fp8-128x128" else 1 for name in formats)
    if sum(dims) > sum(_USUAL_DIMS):  # no product of two operands in 128x128
        return None
    given = zip(_BLOCK_DIMS, dims, _USUAL_DIMS, strict=True)
    unusual = {name: str(dim) for name, dim, usual in given if dim != usual}
    return TERecipe("Float8BlockScaling", {"fp8_format": "Format.E4M3", **unusual})


def _nvfp4(recipes: list[Recipe], roundings: tuple[str, ...]) -> TERecipe | None:
    x, weight, gradient = (one for one in recipes if isinstance(one, NVFP4Scaling))
    rounds_alone = roundings[:2] == ("nearest", "nearest")
    if x.square or gradient.square or x.hadamard != gradient.hadamard or not rounds_alone:
        return None
    disabled = {
        "disable_rht": not x.hadamard,
        "disable_stochastic_rounding": roundings[2] != "stochastic",
        "disable_2d_quantization": not weight.square,
    }
    return TERecipe("NVFP4BlockScaling", {name: "True" for name, off in disabled.items() if off})
