"""A plan as YAML for people: one line an operand, the reasons beside the choices."""

from __future__ import annotations

from collections.abc import Iterator

from numwatch.errors import NumwatchError
from numwatch.plan.types import LossScale, ModulePlan, Operand, Plan, Prediction, Training
from numwatch.plan.yaml_scalars import flow, key, number, plain, text
from numwatch.recipes.scaling import DelayedScaling
from numwatch.recipes.spec import recipe_text
from numwatch.stats import Bounded

VERSION = 1
"""Of the layout. A reader takes this one alone; a change of meaning makes a new one."""

_HEAD = f"""\
# What to train in, by numwatch. Yours to edit: keys are checked when it is read, comments of your
# own are lost when numwatch writes it again, a reason: is kept.
version: {VERSION}
"""
_TRAINING = """
# compute and weights: fp16, bf16 or fp32. A loss_scale whose growth_interval is null is static.
"""
_MODULES = """
# A module formats its operands (input, weight, grad_output), or keeps the training's precision:
# keep: WHY. Operands that are not named are not rounded.
"""
_PREDICTED = """
# What the record says of each choice: a share of the non-zero elements, or [estimate, lowest,
# highest]. Figures of a choice that is edited away are dropped when the plan is read.
"""


def plan_text(plan: Plan) -> str:
    """Returns the YAML that `parse_plan` reads back as an equal plan.

    Raises:
        NumwatchError: The plan holds what has no text: a function as a delayed recipe's algorithm,
            a source that is not plain.
    """
    return "".join(
        (
            _HEAD,
            f"target: {plan.target}\n",
            *_source(plan),
            _TRAINING,
            *_training(plan.training),
            *_modules(plan.modules),
            *_predictions(plan),
        )
    )


def choice(operand: Operand) -> str:
    """Returns format, recipe and rounding in words: what a prediction is a prediction of."""
    words = [operand.format.name, written_recipe(operand)]
    return " ".join(words if operand.rounding == "nearest" else [*words, operand.rounding])


def _source(plan: Plan) -> Iterator[str]:
    if plan.source:
        yield "\nsource:\n"
        for name, value in plan.source.items():
            yield f"  {key(name)}: {plain(value)}\n"


def _training(training: Training) -> Iterator[str]:
    yield "training:\n"
    yield f"  compute: {training.compute}\n"
    yield f"  weights: {training.weights}\n"
    yield f"  update_rounding: {training.update_rounding}\n"
    yield f"  loss_scale: {_loss_scale(training.loss_scale)}\n"
    if training.reasons:
        yield "  reasons:\n"
        for name, reason in training.reasons.items():
            yield f"    {key(name)}: {text(reason)}\n"


def _loss_scale(loss_scale: LossScale | None) -> str:
    if loss_scale is None:
        return "null"
    interval = loss_scale.growth_interval
    return flow(
        {
            "init": number(loss_scale.init),
            "growth_interval": "null" if interval is None else str(interval),
            **_reason(loss_scale.reason),
        }
    )


def _modules(modules: tuple[ModulePlan, ...]) -> Iterator[str]:
    if not modules:
        return
    yield _MODULES
    yield "modules:\n"
    for module in modules:
        yield f"  {key(module.module)}:\n"
        if module.kept:
            yield f"    keep: {text(module.reason) if module.reason else 'true'}\n"
            continue
        if module.reason:
            yield f"    reason: {text(module.reason)}\n"
        for role, operand in module.operands.items():
            yield f"    {role}: {_operand(operand)}\n"


def _operand(operand: Operand) -> str:
    rounding = {} if operand.rounding == "nearest" else {"rounding": operand.rounding}
    return flow(
        {
            "format": operand.format.name,
            "recipe": text(written_recipe(operand)),
            **rounding,
            **_reason(operand.reason),
        }
    )


def written_recipe(operand: Operand) -> str:
    """Returns an operand's recipe as text.

    Raises:
        NumwatchError: Its algorithm is a function.
    """
    recipe = operand.recipe
    if isinstance(recipe, DelayedScaling) and callable(recipe.algorithm):
        raise NumwatchError(
            "a plan's delayed recipe has the algorithm max or most_recent; a function "
            f"({recipe.algorithm!r:.60}) can't be written"
        )
    return recipe_text(recipe)


def _reason(reason: str) -> dict[str, str]:
    return {"reason": text(reason)} if reason else {}


def _predictions(plan: Plan) -> Iterator[str]:
    module_before = None
    for module, role, operand in plan.operands():
        if operand.predicted is None:
            continue
        if module_before is None:
            yield _PREDICTED
            yield "predicted:\n"
        if module != module_before:
            yield f"  {key(module)}:\n"
        module_before = module
        yield f"    {role}: {_prediction(operand, operand.predicted)}\n"


def _prediction(operand: Operand, predicted: Prediction) -> str:
    return flow(
        {
            "of": text(choice(operand)),
            "flushed": _share(predicted.flushed),
            "saturated": _share(predicted.saturated),
            "median_relative_error": number(predicted.median_relative_error),
            "sqnr": number(predicted.sqnr),
        }
    )


def _share(share: Bounded) -> str:
    if share.exact:
        return number(share.value)
    return plain([float(figure) for figure in (share.value, share.low, share.high)])
