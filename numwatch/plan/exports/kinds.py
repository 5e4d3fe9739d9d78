"""Modules of a plan by what their operands are rounded to."""

from __future__ import annotations

from collections import defaultdict

from numwatch.errors import NumwatchError
from numwatch.plan.types import OPERAND_ROLES, ModulePlan, Plan
from numwatch.plan.yaml_text import written_recipe

Kind = tuple[tuple[str, str, str], ...]
"""Of input, weight and gradient the format, the recipe as text and the rounding."""


def kinds_of(plan: Plan) -> dict[Kind, list[str]]:
    """Returns the planned modules by kind, the kind most of them have first.

    Raises:
        NumwatchError: A module's plan leaves out an operand; libraries take both of a product.
    """
    kinds: dict[Kind, list[str]] = defaultdict(list)
    for module in plan.modules:
        if not module.kept:
            kinds[_kind(module)].append(module.module)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _kind(module: ModulePlan) -> Kind:
    missing = [role for role in OPERAND_ROLES if role not in module.operands]
    if missing:
        raise NumwatchError(
            f"{module.module}: libraries round both operands of a product or none, and the plan "
            f"leaves out {', '.join(missing)}"
        )
    operands = (module.operands[role] for role in OPERAND_ROLES)
    return tuple((one.format.name, written_recipe(one), one.rounding) for one in operands)


def common_kind(kinds: dict[Kind, list[str]]) -> Kind:
    """Returns the one kind to train all modules in: the first, with E5M2 gradients if any has them.

    E4M3 would flush those, while E5M2 costs the others a bit of precision.
    """
    first = next(iter(kinds))
    alike = [kind for kind in kinds if kind[:2] == first[:2] and kind[2][1:] == first[2][1:]]
    return next((kind for kind in alike if kind[2][0].endswith("e5m2")), first)


def kind_text(kind: Kind) -> str:
    """Returns a kind in words."""
    return ", ".join(
        f"{role} {fmt} {recipe}{' stochastic' if rounding == 'stochastic' else ''}"
        for role, (fmt, recipe, rounding) in zip(OPERAND_ROLES, kind, strict=True)
    )


def one_line(text: str) -> str:
    """Returns a text as a comment can hold it: without line breaks, and no NUL at all."""
    line = " ".join(text.split())
    return line if line.isprintable() else repr(line)
