"""A plan as `numwatch recommend` prints it: each operand's choice and what it would lose."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from numwatch.plan import OPERAND_ROLES, LossScale, ModulePlan, Operand, Plan
from numwatch.recipes.spec import recipe_text
from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled
from numwatch.report.text import UNKNOWN, bounded_text, figure_text, scale_text, several

_HEAD = ("operand", "format", "recipe", "flushed", "saturated", "median error", "SQNR")
_KEPT = 8
"""Kept modules named, each with its reason."""


def plan_lines(plan: Plan, *, reasons: bool = False) -> list[Text]:
    """Returns what to train in, what each operand would lose, and what stays as it is.

    Args:
        plan: The plan.
        reasons: Tell the reason of each operand too.
    """
    lines = list(_training(plan))
    operands = list(plan.operands())
    if operands:
        lines += [Text(), *column_lines(_HEAD, [_cells(*one) for one in operands], "lllrrrr")]
    if operands and reasons:
        lines += [Text(), *(labelled(f"{m}:{r}", Text(o.reason)) for m, r, o in operands)]
    kept = [module for module in plan.modules if module.kept]
    if kept:
        lines += [Text(), *_kept(kept, plan.training.compute)]
    if plan.modules:
        lines += [Text(), _count(plan)]
    return lines


def _training(plan: Plan) -> Iterator[Text]:
    training, why = plan.training, plan.training.reasons
    yield labelled("compute", _because(training.compute.upper(), why.get("compute")))
    weights = training.weights.upper()
    if training.update_rounding == "stochastic":
        weights += ", updates rounded stochastically"
    yield labelled("weights", _because(weights, why.get("weights")))
    if training.loss_scale is not None:
        yield labelled("loss scale", _scale(training.loss_scale))


def _scale(loss_scale: LossScale) -> Text:
    interval = loss_scale.growth_interval
    kind = "static" if interval is None else f"dynamic, doubling after {several(interval, 'step')}"
    return _because(f"{scale_text(loss_scale.init)}, {kind}", loss_scale.reason)


def _because(what: str, why: str | None) -> Text:
    text = Text(what, style="bold")
    return text.append(f": {why}", style="not bold") if why else text


def _cells(module: str, role: str, operand: Operand) -> list[Text]:
    predicted = operand.predicted
    recipe = recipe_text(operand.recipe)
    if operand.rounding == "stochastic":
        recipe += ", stochastic"
    return [
        Text(f"{module}:{role}", style="bold"),
        Text(operand.format.name),
        Text(recipe),
        Text(bounded_text(predicted.flushed if predicted else None)),
        Text(bounded_text(predicted.saturated if predicted else None)),
        Text(figure_text(predicted.median_relative_error if predicted else None)),
        Text(UNKNOWN if predicted is None else f"{predicted.sqnr:.1f} dB"),
    ]


def _kept(kept: list[ModulePlan], compute: str) -> Iterator[Text]:
    for module in kept[:_KEPT]:
        yield labelled(f"stays {compute.upper()}", _because(module.module, module.reason))
    if len(kept) > _KEPT:
        yield Text(f"and {several(len(kept) - _KEPT, 'module')} more", style="dim")


def _count(plan: Plan) -> Text:
    rounded = sum(not module.kept for module in plan.modules)
    per_role = {
        role: sorted({o.format.name for _, r, o in plan.operands() if r == role})
        for role in OPERAND_ROLES
    }
    told = ", ".join(f"{role} {'/'.join(names)}" for role, names in per_role.items() if names)
    text = f"{rounded} of {several(len(plan.modules), 'GEMM')} in {plan.target}"
    return Text(f"{text}: {told}" if told else text, style="bold")
