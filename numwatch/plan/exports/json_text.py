"""A plan as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from numwatch.formats import BlockFormat, Format
from numwatch.plan.types import ModulePlan, Operand, Plan, Prediction
from numwatch.plan.yaml_text import VERSION
from numwatch.recipes.spec import recipe_text
from numwatch.stats import Bounded


def json_text(plan: Plan) -> str:
    """Returns a plan as strict JSON; what it has no number for reads "NaN" or "Infinity"."""
    content = {
        "version": VERSION,
        "target": plan.target,
        "source": dict(plan.source),
        "training": {
            "compute": plan.training.compute,
            "weights": plan.training.weights,
            "update_rounding": plan.training.update_rounding,
            "loss_scale": None
            if plan.training.loss_scale is None
            else {
                "init": plan.training.loss_scale.init,
                "growth_interval": plan.training.loss_scale.growth_interval,
                "reason": plan.training.loss_scale.reason,
            },
            "reasons": dict(plan.training.reasons),
        },
        "modules": {module.module: _module(module) for module in plan.modules},
    }
    return json.dumps(_plain(content), indent=2, allow_nan=False, default=str)


def _module(module: ModulePlan) -> dict[str, Any]:
    operands = {role: _operand(operand) for role, operand in module.operands.items()}
    return {"reason": module.reason, "kept": module.kept, "operands": operands}


def _operand(operand: Operand) -> dict[str, Any]:
    fmt: Format | BlockFormat = operand.format
    return {
        "format": fmt.name,
        "recipe": recipe_text(operand.recipe),
        "rounding": operand.rounding,
        "reason": operand.reason,
        "predicted": None if operand.predicted is None else _prediction(operand.predicted),
    }


def _prediction(predicted: Prediction) -> dict[str, Any]:
    return {
        "flushed": _bounded(predicted.flushed),
        "saturated": _bounded(predicted.saturated),
        "median_relative_error": predicted.median_relative_error,
        "sqnr": predicted.sqnr,
    }


def _bounded(share: Bounded) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value
