"""A plan as flags for Megatron-LM."""

from __future__ import annotations

import re

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import common_kind, kind_text, kinds_of
from numwatch.plan.types import Plan
from numwatch.recipes.scaling import DelayedScaling
from numwatch.recipes.spec import parse_recipe

_BLOCK = re.compile(r"^(.*?\.)?(\d+)\.")
_MIN_LOSS_SCALE = 1.0
_HYSTERESIS = 2


def megatron_flags(plan: Plan) -> str:
    """Returns the flags, a line each; what they can not say stands behind `#`.

    Megatron has one recipe for all layers and leaves out whole layers at either end.

    Raises:
        NumwatchError: Megatron has no such recipe.
    """
    flags = [f"--{plan.training.compute}"] if plan.training.compute != "fp32" else []
    flags += _loss_scale(plan)
    kinds = kinds_of(plan)
    if kinds:
        kind = common_kind(kinds)
        others = [other for other in kinds if other != kind]
        flags += _recipe(kind_text(kind), kind)
        flags += [f"# planned otherwise: {kind_text(other)}: {kinds[other]}" for other in others]
        flags += _ends(plan)
    return "\n".join(flags) + "\n"


def _loss_scale(plan: Plan) -> list[str]:
    scale = plan.training.loss_scale
    if scale is None:
        return []
    if scale.growth_interval is None:
        return [f"--loss-scale {scale.init:g}"]
    return [
        f"--initial-loss-scale {scale.init:g}",
        f"--min-loss-scale {_MIN_LOSS_SCALE:g}",
        f"--loss-scale-window {scale.growth_interval}",
        f"--hysteresis {_HYSTERESIS}",
    ]


def _recipe(told: str, kind: tuple[tuple[str, str, str], ...]) -> list[str]:
    (x, x_recipe, _), _, (g, _, _) = kind
    hybrid = "hybrid" if g.endswith("e5m2") else "e4m3"
    recipe = parse_recipe(x_recipe)
    if x == "e4m3" and isinstance(recipe, DelayedScaling):
        return [
            f"--fp8-format {hybrid}",
            "--fp8-recipe delayed",
            f"--fp8-margin {recipe.margin}",
            f"--fp8-amax-history-len {recipe.history}",
            f"--fp8-amax-compute-algo {recipe.algorithm}",
        ]
    names = {"e4m3": "tensorwise", "block-fp8-1x128": "blockwise", "mxfp8-e4m3": "mxfp8"}
    if x in names and not x_recipe.startswith("rowwise"):
        return [f"--fp8-format {hybrid}", f"--fp8-recipe {names[x]}"]
    if x == "nvfp4":
        return ["--fp4-format e2m1", "--fp4-recipe nvfp4"]
    raise NumwatchError(f"Megatron-LM has no recipe for {told}")


def _ends(plan: Plan) -> list[str]:
    """How many whole layers stay at either end, and who else does."""
    layers: dict[str, bool] = {}
    for module in plan.modules:
        found = _BLOCK.match(module.module)
        if found:
            layers[found[0]] = layers.get(found[0], True) and module.kept
    kept = list(layers.values())
    start = next((i for i, stays in enumerate(kept) if not stays), len(kept))
    end = next((i for i, stays in enumerate(reversed(kept)) if not stays), len(kept))
    flags = []
    if start or end:
        flags += [
            "--first-last-layers-bf16",
            f"--num-layers-at-start-in-bf16 {start}",
            f"--num-layers-at-end-in-bf16 {end}",
        ]
    ends = {*list(layers)[:start], *list(layers)[len(layers) - end :]}
    others = [
        module.module
        for module in plan.modules
        if module.kept and not any(module.module.startswith(layer) for layer in ends)
    ]
    return flags + [f"# stays in {plan.training.compute} too: {name}" for name in others]
