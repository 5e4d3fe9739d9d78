"""A plan as flags for Megatron-LM."""

from __future__ import annotations

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import common_kind, kind_text, kinds_of
from numwatch.plan.exports.layers import Layers, layers_of
from numwatch.plan.exports.te_recipe import TERecipe, te_recipe
from numwatch.plan.types import Plan
from numwatch.plan.yaml_scalars import number

_MIN_LOSS_SCALE = "1.0"
_HYSTERESIS = "2"
"""Megatron's own defaults: a plan says nothing of them."""
_ONE_WORD = {"Float8CurrentScaling": "tensorwise", "MXFP8BlockScaling": "mxfp8"}


def megatron_flags(plan: Plan) -> str:
    """Returns the flags, a line each; what they can not say stands behind `#`.

    Megatron has one recipe for all layers and leaves out whole layers at either end.

    Raises:
        NumwatchError: Megatron has no such recipe.
    """
    training = plan.training
    flags = [f"--{training.compute}"] if training.compute != "fp32" else []
    if training.weights != "fp32":
        flags.append(f"# planned otherwise: weights in {training.weights}; Megatron keeps FP32")
    flags += _loss_scale(plan)
    kinds = kinds_of(plan)
    if kinds:
        kind = common_kind(kinds)
        recipe = te_recipe(kind)
        flags += _recipe(recipe, kind_text(kind))
        flags += [
            f"# planned otherwise: {kind_text(other)}: {', '.join(map(repr, modules))}"
            for other, modules in kinds.items()
            if other != kind
        ]
        flags += _ends(layers_of(plan), recipe)
    return "\n".join(flags) + "\n"


def _loss_scale(plan: Plan) -> list[str]:
    scale = plan.training.loss_scale
    if scale is None:
        return []
    init = number(scale.init)
    if scale.growth_interval is None:
        return [f"--loss-scale {init}"]
    if plan.training.compute != "fp16":
        return [f"# left out: the loss scale of {init}; Megatron has a dynamic one in fp16 alone"]
    return [
        f"--initial-loss-scale {init}",
        f"--min-loss-scale {_MIN_LOSS_SCALE}",
        f"--loss-scale-window {scale.growth_interval}",
        f"--hysteresis {_HYSTERESIS}",
    ]


def _recipe(recipe: TERecipe, told: str) -> list[str]:
    given = recipe.arguments
    environment = dict(recipe.environment)
    fp8_format = given.get("fp8_format", "").removeprefix("Format.").lower()
    if recipe.name == "DelayedScaling":
        flags = [
            f"--fp8-format {fp8_format}",
            "--fp8-recipe delayed",
            f"--fp8-margin {given['margin']}",
            f"--fp8-amax-history-len {given['amax_history_len']}",
            f"--fp8-amax-compute-algo {given['amax_compute_algo'].strip(chr(34))}",
        ]
    elif recipe.name in _ONE_WORD:
        flags = [f"--fp8-format {fp8_format}", f"--fp8-recipe {_ONE_WORD[recipe.name]}"]
    elif recipe.name == "Float8BlockScaling":
        if set(given) != {"fp8_format"}:
            raise NumwatchError(
                "Megatron-LM scales weights in blocks of 128x128, input and grad_output in 1x128; "
                f"the plan has {told}"
            )
        flags = [f"--fp8-format {fp8_format}", "--fp8-recipe blockwise"]
    else:
        flags = ["--fp4-format e2m1", "--fp4-recipe nvfp4"]
        # Megatron makes it without arguments, so from the environment.
        environment |= {f"NVTE_NVFP4_{name.upper()}": "1" for name in given}
    told_of = (f"# in the environment: {name}={value}" for name, value in environment.items())
    return [*flags, *told_of]


def _ends(layers: Layers, recipe: TERecipe) -> list[str]:
    flags: list[str] = []
    stay = layers.kept_inside
    if layers.start or layers.end:
        if recipe.name == "DelayedScaling":
            stay = layers.kept_in_layers
        else:
            flags += [
                "--first-last-layers-bf16",
                f"--num-layers-at-start-in-bf16 {layers.start}",
                f"--num-layers-at-end-in-bf16 {layers.end}",
            ]
    flags += [f"# planned to stay, but no flag keeps it: {name!r}" for name in stay]
    flags += [f"# stays, as all outside of the layers: {name!r}" for name in layers.kept_outside]
    return flags + [
        f"# planned, but nothing is rounded outside of the layers: {name!r}"
        for name in layers.planned_outside
    ]
