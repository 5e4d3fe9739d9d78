"""`ApplyPlan`: training in a plan's real formats, through torchao."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import (  # type: ignore[attr-defined]
    rank_zero_info,
    rank_zero_warn,
)
from torch import nn

from numwatch.errors import NumwatchError, near
from numwatch.formats import Format
from numwatch.plan import OPERAND_ROLES, ModulePlan, Operand, Plan, check_modules
from numwatch.recipes.blockwise import RowScaling
from numwatch.recipes.scaling import CurrentScaling
from numwatch.recipes.spec import recipe_text
from numwatch.taps.float8 import is_float8_linear

from ._converting import ConvertingCallback
from ._torchao import compute_dtype, convert, scaled_mm_fault
from .emulate import load
from .training import training_fault

_ELSEWHERE = "`EmulatePrecision` trains under it on any machine"


class ApplyPlan(ConvertingCallback):
    """Turns each planned Linear into torchao's `Float8Linear`, with its own formats and scales.

    E4M3 and E5M2 with one scale a tensor (`current`) or a row (`rowwise`): what torchao trains in.
    Where the device can not run it in `torch._scaled_mm` the products are emulated in FP32 by
    torchao; `emulated` and a log line say so. On CUDA the tokens of a batch must come in multiples
    of 16. The model stays converted after the fit.

    What a plan says of the training as a whole (compute format, masters, loss scale) is the
    Trainer's to do; a warning tells where it does otherwise. `numwatch export PLAN --to lightning`
    prints its arguments.

    Args:
        plan: The plan, or the path of its `plan.yaml`.
        emulate: True always emulates, False never does; None chooses by the device.

    Attributes:
        converted: Names of the modules that were turned.
        emulated: Whether their GEMMs are emulated; None before the fit.

    Raises:
        NumwatchError: The plan can not be read, holds what torchao can not train in, is for another
            model, or `emulate=False` and the device can not run it.
    """

    def __init__(self, plan: Plan | str, emulate: bool | None = None) -> None:
        self.plan = load(plan)
        super().__init__(emulate)
        self._groups = _groups(self.plan)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Looks at the Trainer too."""
        super().on_fit_start(trainer, pl_module)
        fault = training_fault(self.plan, str(trainer.precision), trainer.scaler)
        if fault is not None:
            rank_zero_warn(f"ApplyPlan: {fault}", category=UserWarning)

    def _convert(self, trainer: Any, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        check_modules(self.plan, modules)
        planned = {name for names in self._groups.values() for name in names}
        if planned and all(is_float8_linear(modules[name]) for name in planned):  # a second fit
            turned: list[Any] = [modules[name] for name in planned]
            self.emulated = any(module.config.emulate for module in turned)
            return
        for name in planned:
            _require_linear(name, modules)
        device, dtype = trainer.strategy.root_device, compute_dtype(str(trainer.precision))
        configs = {key: _config(key) for key in self._groups}
        why_not = None if self.emulate else _fault(configs.values(), device, dtype)
        if why_not and self.emulate is False:
            raise NumwatchError(
                f"emulate=False, and {device} can not run the plan in {dtype}: {why_not}; leave "
                f"emulate=None, or {_ELSEWHERE}"
            )
        self.emulated = bool(self.emulate or why_not)
        for key, names in self._groups.items():
            config = replace(configs[key], emulate=self.emulated)
            convert(model, [modules[name] for name in names], config)
        self.converted = tuple(sorted(planned))
        how = "emulated in FP32" if self.emulated else "in torch._scaled_mm"
        rank_zero_info(
            f"ApplyPlan: {len(planned)} of {len(self.plan.modules)} planned modules in float8, "
            f"GEMMs {how} on {device}{f' ({why_not})' if why_not else ''}"
        )


Key = tuple[tuple[str, str, bool], ...]
"""Of each operand its format, `tensor` or `row`, and whether scales are powers of two."""


def _groups(plan: Plan) -> dict[Key, list[str]]:
    """Modules by what their operands are cast to: torchao takes one config for each kind.

    Raises:
        NumwatchError: An operand is planned in what torchao can not train in.
    """
    groups: dict[Key, list[str]] = defaultdict(list)
    for module in plan.modules:
        if not module.kept:
            groups[_key(module)].append(module.module)
    return dict(groups)


def _key(module: ModulePlan) -> Key:
    missing = [role for role in OPERAND_ROLES if role not in module.operands]
    if missing:
        raise NumwatchError(
            f"{module.module}: torchao rounds both operands of a product or none, and the plan "
            f"leaves out {', '.join(missing)}; {_ELSEWHERE}"
        )
    key = tuple(_cast(module.module, role, module.operands[role]) for role in OPERAND_ROLES)
    if sum(fmt == "e5m2" for fmt, _, _ in key) > 1:
        raise NumwatchError(
            f"{module.module}: no device multiplies E5M2 with E5M2, and the plan has it in more "
            f"than one operand; {_ELSEWHERE}"
        )
    if len({cast[1:] for cast in key}) > 1:
        raise NumwatchError(
            f"{module.module}: torchao scales all operands of a module alike, by tensors or by "
            f"rows; {_ELSEWHERE}"
        )
    return key


def _cast(module: str, role: str, operand: Operand) -> tuple[str, str, bool]:
    recipe, fmt = operand.recipe, operand.format
    kind = {CurrentScaling: "tensor", RowScaling: "row"}.get(type(recipe))
    sound = isinstance(fmt, Format) and fmt.name in ("e4m3", "e5m2")
    if kind is None or not sound or operand.rounding != "nearest":
        raise NumwatchError(
            f"{module}:{role}: torchao trains in e4m3 and e5m2, rounded to nearest and scaled by "
            f"`current` or `rowwise`; the plan says {fmt.name}, {recipe_text(recipe)}, "
            f"{operand.rounding}; {_ELSEWHERE}"
        )
    return fmt.name, kind, bool(getattr(recipe, "power_of_two", False))


def _config(key: Key) -> Any:
    from torchao.float8 import CastConfig, Float8LinearConfig, ScalingGranularity

    granularity = {"tensor": ScalingGranularity.TENSORWISE, "row": ScalingGranularity.AXISWISE}
    dtypes = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    casts = [
        CastConfig(scaling_granularity=granularity[kind], target_dtype=dtypes[fmt])
        for fmt, kind, _ in key
    ]
    return Float8LinearConfig(
        cast_config_input=casts[0],
        cast_config_weight=casts[1],
        cast_config_grad_output=casts[2],
        round_scales_to_power_of_2=key[0][2],
    )


def _fault(configs: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    faults = (scaled_mm_fault(config, device, dtype) for config in configs)
    return next((fault for fault in faults if fault is not None), None)


def _require_linear(name: str, modules: dict[str, nn.Module]) -> None:
    if type(modules[name]) is not nn.Linear:
        linears = [other for other, module in modules.items() if type(module) is nn.Linear]
        raise NumwatchError(
            f"the plan's {name!r} is a {type(modules[name]).__name__}; torchao turns an nn.Linear "
            f"itself{near(name, linears)}"
        )
