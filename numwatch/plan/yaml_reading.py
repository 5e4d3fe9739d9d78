"""YAML text read as a plan, every word of it checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args

from numwatch.errors import NumwatchError
from numwatch.formats import Rounding
from numwatch.plan.checks import check_word, format_for
from numwatch.plan.types import (
    OPERAND_ROLES,
    LossScale,
    ModulePlan,
    Operand,
    Plan,
    Prediction,
    Storage,
    Training,
)
from numwatch.plan.yaml_text import VERSION, choice
from numwatch.plan.yaml_tree import Entry, PlacedError, parse_tree
from numwatch.recipes.spec import parse_recipe
from numwatch.stats import Bounded

T = TypeVar("T")

_PLAN = ("version", "target", "source", "training", "modules", "predicted")
_TRAINING = ("compute", "weights", "update_rounding", "loss_scale", "reasons")
_WORDS = {
    "compute": get_args(Storage),
    "weights": get_args(Storage),
    "update_rounding": get_args(Rounding),
}
_LOSS_SCALE = ("init", "growth_interval", "reason")
_MODULE = (*OPERAND_ROLES, "reason", "keep")
_OPERAND = ("format", "recipe", "rounding", "reason")
_PREDICTION = ("of", "flushed", "saturated", "median_relative_error", "sqnr")
_BOUNDED = 3


def parse_plan(text: str, name: str = "plan") -> Plan:
    """Returns the plan that a YAML text holds.

    Args:
        text: What `plan_text` writes, edited or not.
        name: Of the file, for errors.

    Raises:
        NumwatchError: One line: where, what is allowed, what came, what is near.
    """
    root = parse_tree(text, name)
    if root.value is None:
        root.wrong("the file is empty; a plan has version: and target:")
    _check_version(root)
    entries = root.mapping(_PLAN)
    predictions = _nested(entries.get("predicted"))
    modules = _nested(entries.get("modules"))
    return _made(
        root,
        lambda: Plan(
            target=_needed(root, entries, "target").text(),
            training=_training(entries.get("training")),
            modules=tuple(
                _module(name, entry, _nested(predictions.get(name)))
                for name, entry in modules.items()
            ),
            source={name: entry.plain() for name, entry in _nested(entries.get("source")).items()},
        ),
        entries.get("target"),
    )


def _check_version(root: Entry) -> None:
    # Before all else: what follows it means may have changed.
    entry = _needed(root, root.mapping(), "version")
    version = entry.whole()
    if version > VERSION:
        entry.wrong(
            f"this plan has version {version}, from a newer numwatch; this one reads {VERSION}: "
            f"upgrade numwatch"
        )
    if version != VERSION:
        entry.wrong(f"the version of a plan is {VERSION}; got {version}")


def _training(entry: Entry | None) -> Training:
    if entry is None:
        return Training()
    entries = entry.mapping(_TRAINING)
    given: dict[str, Any] = {
        name: _word(entries[name], allowed) for name, allowed in _WORDS.items() if name in entries
    }
    reasons = _nested(entries.get("reasons"))
    return Training(
        **given,
        loss_scale=_loss_scale(entries.get("loss_scale")),
        reasons={name: reason.text() for name, reason in reasons.items()},
    )


def _loss_scale(entry: Entry | None) -> LossScale | None:
    if entry is None or entry.value is None:
        return None
    entries = entry.mapping(_LOSS_SCALE)
    given: dict[str, Any] = {}
    if "growth_interval" in entries:
        interval = entries["growth_interval"]
        given["growth_interval"] = None if interval.value is None else interval.whole()
    init = _needed(entry, entries, "init")
    return _made(entry, lambda: LossScale(init=init.number(), reason=_reason(entries), **given))


def _module(name: str, entry: Entry, predictions: Mapping[str, Entry]) -> ModulePlan:
    entries = entry.mapping(_MODULE)
    operands = [key for key in entries if key in OPERAND_ROLES]
    if "keep" in entries:
        if operands or "reason" in entries:
            entry.wrong("a kept module has keep: WHY alone; remove that, or all the rest")
        keep = entries["keep"]
        return ModulePlan(name, reason="" if keep.value is True else keep.text())
    if not operands:
        entry.wrong(f"a module has keep: WHY or some of {', '.join(OPERAND_ROLES)}; got none")
    return ModulePlan(
        name,
        {role: _operand(entries[role], predictions.get(role)) for role in operands},
        _reason(entries),
    )


def _operand(entry: Entry, predicted: Entry | None) -> Operand:
    for key, below in entry.mapping().items():
        if "=" in key and below.value is None:
            below.wrong("a recipe with a comma needs quotes: recipe: 'delayed:history=16,margin=1'")
    entries = entry.mapping(_OPERAND)
    format_entry, recipe_entry = (_needed(entry, entries, key) for key in ("format", "recipe"))
    recipe = _made(recipe_entry, lambda: parse_recipe(recipe_entry.text()))
    fmt = _made(format_entry, lambda: format_for(format_entry.text(), recipe))
    given: dict[str, Any] = {}
    if "rounding" in entries:
        given["rounding"] = _word(entries["rounding"], get_args(Rounding))
    operand = Operand(fmt, recipe, reason=_reason(entries), **given)
    if predicted is None:
        return operand
    return replace(operand, predicted=_prediction(predicted, operand))


def _prediction(entry: Entry, operand: Operand) -> Prediction | None:
    entries = entry.mapping(_PREDICTION)
    flushed, saturated, error, sqnr = (_needed(entry, entries, key) for key in _PREDICTION[1:])
    if _needed(entry, entries, "of").text() != choice(operand):
        return None
    return Prediction(_share(flushed), _share(saturated), error.number(), sqnr.number())


def _share(entry: Entry) -> Bounded:
    if not isinstance(entry.value, list):
        value = entry.number()
        return _bounded(entry, value, value, value)
    if len(entry.value) != _BOUNDED:
        entry.wrong(f"here [estimate, lowest, highest] is needed; got {len(entry.value)} figures")
    return _bounded(entry, *(figure.number() for figure in entry.value))


def _bounded(entry: Entry, value: float, low: float, high: float) -> Bounded:
    try:
        return Bounded(value, low, high)
    except ValueError as error:
        entry.wrong(f"here [estimate, lowest, highest] is needed; {error}")


def _word(entry: Entry, allowed: Collection[str]) -> str:
    word = entry.text()
    _made(entry, lambda: check_word(entry.name, word, allowed))
    return word


def _reason(entries: Mapping[str, Entry]) -> str:
    return entries["reason"].text() if "reason" in entries else ""


def _nested(entry: Entry | None) -> Mapping[str, Entry]:
    return {} if entry is None else entry.mapping()


def _needed(entry: Entry, entries: Mapping[str, Entry], key: str) -> Entry:
    if key not in entries:
        entry.wrong(f"the key {key!r} is missing")
    return entries[key]


def _made(entry: Entry, make: Callable[[], T], blamed: Entry | None = None) -> T:
    """Returns what `make` makes; an error that does not say where says so, once."""
    try:
        return make()
    except PlacedError:
        raise
    except NumwatchError as error:
        return (blamed or entry).wrong(str(error))
