"""A plan as code for torchao: a call for each kind of module, and a filter by name."""

from __future__ import annotations

from collections.abc import Sequence

from numwatch.errors import NumwatchError
from numwatch.plan.exports.kinds import Kind, kind_text, kinds_of
from numwatch.plan.types import OPERAND_ROLES, Plan
from numwatch.recipes.spec import recipe_text

_GRANULARITIES = {
    "current": ("TENSORWISE", False),
    "current:power_of_two=true": ("TENSORWISE", True),
    "rowwise": ("AXISWISE", False),
    "rowwise:power_of_two=true": ("AXISWISE", True),
}
_DTYPES = {"e4m3": "torch.float8_e4m3fn", "e5m2": "torch.float8_e5m2"}
_RULES = {"mx:rule=rceil": "RCEIL", "mx": "FLOOR"}
_NVFP4 = (
    ("nvfp4", "nvfp4:hadamard=true", "nearest"),
    ("nvfp4", "nvfp4:square=true", "nearest"),
    ("nvfp4", "nvfp4:hadamard=true", "stochastic"),
)
_INT8 = ("weight", "int8", "rowwise", "nearest")

Part = tuple[str, str]
"""What is imported, and the code that needs it."""


def torchao_code(plan: Plan) -> str:
    """Returns code that turns the planned Linears of `model`.

    FP8 through `torchao.float8`, MXFP8 and NVFP4 through its prototypes for training, INT8 weights
    through `quantize_`.

    Raises:
        NumwatchError: torchao can not train in what is planned, or nothing is.
    """
    if plan.target == "int8-weights":
        parts = [_int8(plan)]
    else:
        kinds = kinds_of(plan)
        if not kinds:
            raise NumwatchError("the plan rounds no operand: torchao has nothing to do")
        parts = [_part(kind, names) for kind, names in kinds.items()]
    imports = dict.fromkeys(imported for imported, _ in parts)
    return "\n".join(["".join(imports), _PLANNED, *(code for _, code in parts)])


_PLANNED = '''
def planned(*names):
    """Returns the filter for these modules; refuses a plan for another model."""
    missing = set(names) - {name for name, _ in model.named_modules()}
    if missing:
        raise LookupError(f"the plan names modules that the model lacks: {sorted(missing)}")
    return lambda module, name: name in names

'''
_FLOAT8_IMPORTS = """import torch
from torchao.float8 import (
    CastConfig,
    Float8LinearConfig,
    ScalingGranularity,
    convert_to_float8_training,
)
"""
# Not `MXFP8TrainingOpConfig`, whose Linears lose their bias (0.18).
_MXFP8_IMPORTS = """from torchao.float8.float8_linear_utils import swap_linear_layers
from torchao.prototype.moe_training.mxfp8_linear import MXFP8Linear
from torchao.prototype.mx_formats.config import ScaleCalculationMode
"""
_NVFP4_IMPORTS = """from torchao.prototype.moe_training.nvfp4_training.nvfp4_training import (
    NVFP4TrainingConfig,
)
from torchao.quantization import quantize_
"""
_INT8_IMPORTS = "from torchao.quantization import Int8WeightOnlyConfig, quantize_\n"


def _part(kind: Kind, names: Sequence[str]) -> Part:
    formats = {fmt for fmt, _, _ in kind}
    part = None
    if kind == _NVFP4:
        part = _nvfp4(names)
    elif formats <= set(_DTYPES):
        part = _float8(kind, names)
    elif formats == {"mxfp8-e4m3"}:
        part = _mxfp8(kind, names)
    if part is None:
        raise NumwatchError(
            "torchao trains Linears in e4m3 and at most one e5m2, scaled alike by `current` or "
            "`rowwise`, in mxfp8-e4m3 by rule rceil or floor, and in nvfp4 as its authors do "
            "(weights square, the others with hadamard, gradients stochastic); "
            f"{names[0]} has {kind_text(kind)}"
        )
    return part


def _float8(kind: Kind, names: Sequence[str]) -> Part | None:
    scale = _GRANULARITIES.get(_same(kind))
    if scale is None or sum(fmt == "e5m2" for fmt, _, _ in kind) > 1:  # CUDA has no such product
        return None
    granularity, power_of_two = scale
    casts = "\n".join(
        f"        cast_config_{role}=CastConfig(\n"
        f"            scaling_granularity=ScalingGranularity.{granularity},\n"
        f"            target_dtype={_DTYPES[fmt]},\n"
        "        ),"
        for role, (fmt, _, _) in zip(OPERAND_ROLES, kind, strict=True)
    )
    code = f"""convert_to_float8_training(
    model,
    config=Float8LinearConfig(
{casts}
        round_scales_to_power_of_2={power_of_two},
    ),
    module_filter_fn={_planned(names)},
)
"""
    return _FLOAT8_IMPORTS, code


def _mxfp8(kind: Kind, names: Sequence[str]) -> Part | None:
    rule = _RULES.get(_same(kind))
    if rule is None:
        return None
    code = f"""
def mxfp8_{rule.lower()}(linear):
    turned = MXFP8Linear(
        linear.in_features,
        linear.out_features,
        bias=False,
        device="meta",
        scale_calculation_mode=ScaleCalculationMode.{rule},
    )
    turned.weight, turned.bias = linear.weight, linear.bias
    return turned


swap_linear_layers(
    model,
    mxfp8_{rule.lower()},
    module_filter_fn={_planned(names)},
)
"""
    return _MXFP8_IMPORTS, code


def _nvfp4(names: Sequence[str]) -> Part:
    code = f"""quantize_(
    model,
    NVFP4TrainingConfig(),
    filter_fn={_planned(names)},
)
"""
    return _NVFP4_IMPORTS, code


def _int8(plan: Plan) -> Part:
    names = [module.module for module in plan.modules if "weight" in module.operands]
    if not names:
        raise NumwatchError("the plan rounds no weight: torchao has nothing to do")
    for module, role, operand in plan.operands():
        planned = role, operand.format.name, recipe_text(operand.recipe), operand.rounding
        if planned != _INT8:
            raise NumwatchError(
                "torchao's Int8WeightOnlyConfig takes the weight in int8, scaled by `rowwise` and "
                f"rounded to nearest; {module} has {' '.join(planned)}"
            )
    code = f"""quantize_(
    model,
    Int8WeightOnlyConfig(),
    filter_fn={_planned(names)},
)
"""
    return _INT8_IMPORTS, code


def _same(kind: Kind) -> str:
    """The recipe that all operands have, rounded to nearest; empty where there is no such."""
    recipes = {recipe for _, recipe, _ in kind}
    nearest = all(rounding == "nearest" for _, _, rounding in kind)
    return recipes.pop() if len(recipes) == 1 and nearest else ""


def _planned(names: Sequence[str]) -> str:
    listed = "".join(f"        {name!r},\n" for name in names)
    return f"planned(\n{listed}    )"
