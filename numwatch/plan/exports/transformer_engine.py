"""A plan as code for Transformer Engine: its one recipe, and the modules to leave out."""

from __future__ import annotations

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import common_kind, kind_text, kinds_of, one_line
from numwatch.plan.exports.te_recipe import TERecipe, te_recipe
from numwatch.plan.types import Plan

_WIDTH = 88


def transformer_engine_code(plan: Plan) -> str:
    """Returns one recipe object for the planned modules, and who is left out or planned otherwise.

    Raises:
        NumwatchError: Transformer Engine has no such recipe, or nothing is planned.
    """
    kinds = kinds_of(plan)
    if not kinds:
        raise NumwatchError("the plan rounds no operand: Transformer Engine has nothing to do")
    kind = common_kind(kinds)
    recipe = te_recipe(kind)
    call = _call(recipe)
    imported = f"Format, {recipe.name}" if "Format." in call else recipe.name
    lines = [
        *_environment(recipe),
        "import transformer_engine.pytorch as te",
        f"from transformer_engine.common.recipe import {imported}",
        "",
        f"recipe = {call}",
    ]
    for other, modules in kinds.items():
        if other != kind:
            lines.append(f"# One recipe serves all modules; planned otherwise: {kind_text(other)}:")
            lines += [f"#   {module!r}" for module in modules]
    lines += ["", "# Stay as they are: make no te.Linear of these.", *_kept(plan)]
    lines += [
        "",
        "with te.autocast(enabled=True, recipe=recipe):",
        "    output = model(batch)",
    ]
    return "\n".join(lines) + "\n"


def _environment(recipe: TERecipe) -> list[str]:
    if not recipe.environment:
        return []
    values = recipe.environment.items()
    return [
        "import os",
        "",
        "# Read at the import below.",
        *(f'os.environ["{name}"] = "{value}"' for name, value in values),
        "",
    ]


def _call(recipe: TERecipe) -> str:
    arguments = [f"{name}={value}" for name, value in recipe.arguments.items()]
    line = f"{recipe.name}({', '.join(arguments)})"
    if len(line) <= _WIDTH - len("recipe = "):
        return line
    return "\n".join([f"{recipe.name}(", *(f"    {argument}," for argument in arguments), ")"])


def _kept(plan: Plan) -> list[str]:
    kept = [module for module in plan.modules if module.kept]
    if not kept:
        return ["kept = set()"]
    told = ((repr(module.module), one_line(module.reason)) for module in kept)
    return ["kept = {", *(f"    {name},{why and f'  # {why}'}" for name, why in told), "}"]
