"""A plan as code for Transformer Engine: its one recipe, and the modules to leave out."""

from __future__ import annotations

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import Kind, common_kind, kind_text, kinds_of
from numwatch.plan.types import Plan
from numwatch.recipes.scaling import DelayedScaling
from numwatch.recipes.spec import parse_recipe


def transformer_engine_code(plan: Plan) -> str:
    """Returns one recipe object for the planned modules, and who is left out or planned otherwise.

    Raises:
        NumwatchError: Transformer Engine has no such recipe, or nothing is planned.
    """
    kinds = kinds_of(plan)
    if not kinds:
        raise NumwatchError("the plan rounds no operand: Transformer Engine has nothing to do")
    kind = common_kind(kinds)
    others = [other for other in kinds if other != kind]
    name, call = recipe_call(kind)
    imported = f"Format, {name}" if "Format." in call else name
    lines = [
        "import transformer_engine.pytorch as te",
        f"from transformer_engine.common.recipe import {imported}",
        "",
        f"recipe = {call}",
    ]
    for other in others:
        lines.append(f"# One recipe serves all modules; planned otherwise: {kind_text(other)}:")
        lines += [f"#   {name}" for name in kinds[other]]
    kept = [module for module in plan.modules if module.kept]
    lines += ["", "# Stay as they are: make no te.Linear of these.", "kept = {"]
    lines += [f"    {module.module!r},  # {_one_line(module.reason)}" for module in kept]
    lines += [
        "}",
        "",
        "with te.autocast(enabled=True, recipe=recipe):",
        "    output = model(batch)",
    ]
    return "\n".join(lines) + "\n"


def recipe_call(kind: Kind) -> tuple[str, str]:
    """Returns the class of Transformer Engine's recipe and the call that makes it.

    Raises:
        NumwatchError: It has none for this.
    """
    (x, x_recipe, _), (_, w_recipe, _), (g, _, _) = kind
    fmt = {("e4m3", "e4m3"): "E4M3", ("e4m3", "e5m2"): "HYBRID"}.get((x, g))
    recipe = parse_recipe(x_recipe)
    if fmt and isinstance(recipe, DelayedScaling):
        return "DelayedScaling", (
            f"DelayedScaling(\n    margin={recipe.margin},\n    fp8_format=Format.{fmt},\n"
            f"    amax_history_len={recipe.history},\n"
            f"    amax_compute_algo={recipe.algorithm!r},\n)"
        )
    if fmt and x_recipe.startswith("current"):
        power = ", use_power_2_scales=True" if "power_of_two" in x_recipe else ""
        return "Float8CurrentScaling", f"Float8CurrentScaling(fp8_format=Format.{fmt}{power})"
    if x.startswith("block-fp8"):
        return "Float8BlockScaling", "Float8BlockScaling(fp8_format=Format.E4M3)"
    if x == "mxfp8-e4m3" and x_recipe == "mx:rule=rceil":
        wide = "HYBRID" if g == "mxfp8-e5m2" else "E4M3"
        return "MXFP8BlockScaling", f"MXFP8BlockScaling(fp8_format=Format.{wide})"
    if x == "nvfp4":
        switches = {
            "disable_rht": "hadamard" not in x_recipe,
            "disable_stochastic_rounding": kind[2][2] != "stochastic",
            "disable_2d_quantization": "square" not in w_recipe,
        }
        off = ", ".join(f"{name}=True" for name, value in switches.items() if value)
        return "NVFP4BlockScaling", f"NVFP4BlockScaling({off})"
    raise NumwatchError(f"Transformer Engine has no recipe for {kind_text(kind)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
