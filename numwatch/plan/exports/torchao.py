"""A plan as code for torchao."""

from __future__ import annotations

from collections.abc import Sequence

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import Kind, kind_text, kinds_of
from numwatch.plan.types import Plan

_GRANULARITIES = {
    "current": ("TENSORWISE", False),
    "current:power_of_two=true": ("TENSORWISE", True),
    "rowwise": ("AXISWISE", False),
    "rowwise:power_of_two=true": ("AXISWISE", True),
}
_DTYPES = {"e4m3": "torch.float8_e4m3fn", "e5m2": "torch.float8_e5m2"}
_MX = (("mxfp8-e4m3",) * 3, {"mx:rule=rceil": "RCEIL", "mx": "FLOOR"})


def torchao_code(plan: Plan) -> str:
    """Returns code that turns the planned Linears of `model`.

    FP8 through `torchao.float8`, MXFP8 through its prototype for training, INT8 weights through
    `quantize_`.

    Raises:
        NumwatchError: torchao can not train in what is planned, or nothing is.
    """
    if plan.target == "int8-weights":
        return _int8(plan)
    kinds = kinds_of(plan)
    if not kinds:
        raise NumwatchError("the plan rounds no operand: torchao has nothing to do")
    if {fmt for fmt, _, _ in next(iter(kinds))} <= set(_DTYPES):
        return "\n".join([_FLOAT8, *(_float8(kind, names) for kind, names in kinds.items())])
    return "\n".join([_MXFP8, *(_mxfp8(kind, names) for kind, names in kinds.items())])


_FLOAT8 = """import torch
from torchao.float8 import (
    CastConfig,
    Float8LinearConfig,
    ScalingGranularity,
    convert_to_float8_training,
)
"""
_MXFP8 = """from torchao.prototype.moe_training.config import MXFP8TrainingOpConfig
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.quantization import quantize_
"""


def _float8(kind: Kind, names: Sequence[str]) -> str:
    scales = {_GRANULARITIES.get(recipe) for _, recipe, _ in kind}
    sound = all(fmt in _DTYPES and rounding == "nearest" for fmt, _, rounding in kind)
    scale = scales.pop()
    if scales or scale is None or not sound:
        raise NumwatchError(
            "torchao trains in e4m3 and e5m2, rounded to nearest, all operands of a module scaled "
            f"by `current` or all by `rowwise`; {names[0]} has {kind_text(kind)}"
        )
    granularity, power_of_two = scale
    casts = "\n".join(
        f"        cast_config_{role}=CastConfig(\n"
        f"            scaling_granularity=ScalingGranularity.{granularity},\n"
        f"            target_dtype={_DTYPES[fmt]},\n"
        "        ),"
        for role, (fmt, _, _) in zip(("input", "weight", "grad_output"), kind, strict=True)
    )
    return f"""convert_to_float8_training(
    model,
    config=Float8LinearConfig(
{casts}
        round_scales_to_power_of_2={power_of_two},
    ),
    module_filter_fn=lambda module, name: name
    in {{
{_listed(names)}
    }},
)
"""


def _mxfp8(kind: Kind, names: Sequence[str]) -> str:
    formats, rules = _MX
    recipes = {recipe for _, recipe, _ in kind}
    rule = rules.get(recipes.pop())
    nearest = all(rounding == "nearest" for _, _, rounding in kind)
    if tuple(fmt for fmt, _, _ in kind) != formats or recipes or rule is None or not nearest:
        raise NumwatchError(
            "of block formats torchao trains Linears in mxfp8-e4m3 alone, with rule rceil or "
            f"floor; {names[0]} has {kind_text(kind)}"
        )
    return f"""quantize_(
    model,
    MXFP8TrainingOpConfig(scale_calculation_mode=ScaleCalculationMode.{rule}),
    filter_fn=lambda module, name: name
    in {{
{_listed(names)}
    }},
)
"""


def _int8(plan: Plan) -> str:
    names = [module.module for module in plan.modules if "weight" in module.operands]
    if not names:
        raise NumwatchError("the plan rounds no weight: torchao has nothing to do")
    return f"""from torchao.quantization import Int8WeightOnlyConfig, quantize_

quantize_(
    model,
    Int8WeightOnlyConfig(),
    filter_fn=lambda module, name: name
    in {{
{_listed(names)}
    }},
)
"""


def _listed(names: Sequence[str]) -> str:
    return "\n".join(f"        {name!r}," for name in names)
