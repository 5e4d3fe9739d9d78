"""Recipes as text: `delayed:history=16,margin=0`, what plans and commands are written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar

from numwatch.errors import NumwatchError, near
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling, RowScaling
from numwatch.recipes.loss_scalers import GradScalerRecipe, MegatronScaler, StaticLossScale
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling, StaticScaling

TensorRecipe = StaticScaling | DelayedScaling | CurrentScaling
"""One scale for the whole tensor."""
PartRecipe = RowScaling | BlockScaling | MXScaling | NVFP4Scaling
"""A scale for each of a tensor's parts."""
Recipe = TensorRecipe | PartRecipe
LossRecipe = StaticLossScale | GradScalerRecipe | MegatronScaler
"""One scale for the loss, and with it for all gradients."""
AnyRecipe = Recipe | LossRecipe

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        StaticScaling,
        DelayedScaling,
        CurrentScaling,
        RowScaling,
        BlockScaling,
        MXScaling,
        NVFP4Scaling,
    )
}
"""Every recipe for an operand, by its name."""
LOSS_RECIPES: dict[str, type[LossRecipe]] = {
    recipe.name: recipe for recipe in (StaticLossScale, GradScalerRecipe, MegatronScaler)
}
"""Every recipe for a loss scale, by its name."""

_WANTED: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}
_SWITCHES = {"true": True, "yes": True, "false": False, "no": False}


def parse_recipe(text: str) -> Recipe:
    """Returns the operands' recipe that `name` or `name:key=value,key=value` stands for.

    Raises:
        NumwatchError: No recipe bears that name, or it has no such key, or the value is none; says
            which there are.
    """
    return _parse(text, RECIPES)


def parse_any_recipe(text: str) -> AnyRecipe:
    """Returns the recipe of an operand or of a loss scale; errors as `parse_recipe`'s."""
    known: dict[str, type[AnyRecipe]] = {**RECIPES, **LOSS_RECIPES}
    return _parse(text, known)


def recipe_text(recipe: AnyRecipe) -> str:
    """Returns the text that the parsers read, with what differs from the defaults.

    A function of one's own is told by its name, which no parser reads.
    """
    pairs = [
        f"{field.name}={_text(getattr(recipe, field.name))}"
        for field in fields(recipe)
        if getattr(recipe, field.name) != field.default
    ]
    return recipe.name + (":" + ",".join(pairs) if pairs else "")


_T = TypeVar("_T", bound=AnyRecipe)


def _parse(text: str, recipes: Mapping[str, type[_T]]) -> _T:
    name, _, rest = text.strip().partition(":")
    recipe = recipes.get(name)
    if recipe is None:
        raise NumwatchError(
            f"unknown recipe {name!r}: allowed are {', '.join(recipes)}{near(name, recipes)}"
        )
    known = {field.name: field for field in fields(recipe)}
    given: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if key not in known or not equals:
            allowed = ", ".join(f"{each}=" for each in known) or "none"
            raise NumwatchError(
                f"recipe {text!r} has {pair!r}: {name} takes {allowed}{near(key, known)}"
            )
        if key in given:
            raise NumwatchError(f"recipe {text!r} gives {key} twice")
        given[key] = _value(known[key], value, text)
    return recipe(**given)


def _value(field: Field[Any], value: str, text: str) -> Any:
    # The default tells the type, which annotations kept as text do not.
    default: Any = field.default
    try:
        if isinstance(default, bool):
            return _SWITCHES[value.lower()]
        return type(default)(value)
    except (KeyError, ValueError):
        wanted = _WANTED[type(default)]
        raise NumwatchError(f"recipe {text!r}: {field.name} is {wanted}; got {value!r}") from None


def _text(value: Any) -> str:
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return str(value).lower() if isinstance(value, bool) else str(value)
