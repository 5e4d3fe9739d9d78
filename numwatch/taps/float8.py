"""What torchao's float8 training does to a Linear's operands; all its internals are met here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.formats import Format, get_format

CastOf = Callable[[Tensor], tuple[str, Tensor | float, Tensor, Tensor]]

# torchao scales by the FP32 rounding of max/amax, so amax itself may land two roundings above max.
# The clamp takes off no more than that; it loses nothing.
_SCALE_ROUNDING = 2.0**-22


def is_float8_linear(module: nn.Module) -> bool:
    """Whether the module is torchao's `Float8Linear`; imports nothing to find out."""
    return any(
        cls.__name__ == "Float8Linear" and cls.__module__.startswith("torchao.")
        for cls in type(module).__mro__
    )


def turn_plain(module: nn.Module) -> None:
    """Makes a `Float8Linear` a plain Linear on the same parameters, in place: a copy's only."""
    module.__class__ = nn.Linear


def float8_casts(module: nn.Module) -> dict[str, CastOf] | None:
    """Returns what repeats torchao's casts of a `Float8Linear`'s operands, by role.

    Of the two casts of an operand (one for each GEMM it enters) the first in time is taken:
    `input` and `weight` as cast for `output`, `grad_output` as cast for `grad_input`. A role
    that the recipe leaves in high precision is absent.

    Each value maps the operand to
    - the canonical name of the float8 format,
    - the scale, FP32 [] on the operand's device, or NaN where there is one per row,
    - flushed: int64 [], the non-zero elements that became zero,
    - saturated: int64 [], the elements with |x| * scale above the format's largest value
      (by more than the rounding of the scale).
    It waits for no device.

    Returns:
        The casts, or None where the module is no `Float8Linear`.
    """
    if not is_float8_linear(module):
        return None
    from torchao.float8.config import ScalingType

    config: Any = module.config
    configs = {
        "input": config.cast_config_input,
        "weight": config.cast_config_weight,
        "grad_output": config.cast_config_grad_output,
    }
    return {
        role: _Cast(
            get_format(cast.target_dtype),
            cast,
            module.linear_mm_config,
            power_of_2=config.round_scales_to_power_of_2,
            autocast=role == "input",
        )
        for role, cast in configs.items()
        if cast.scaling_type is not ScalingType.DISABLED
    }


@dataclass(frozen=True)
class _Cast:
    format: Format
    config: Any
    linear_mm_config: Any
    power_of_2: bool
    autocast: bool

    def __call__(self, x: Tensor) -> tuple[str, Tensor | float, Tensor, Tensor]:
        from torchao.float8.float8_scaling_utils import (
            get_maybe_axiswise_dim,
            hp_tensor_to_float8_dynamic,
        )

        x = x.detach()
        if self.autocast and torch.is_autocast_enabled("cuda"):
            x = x.to(torch.get_autocast_dtype("cuda"))  # the one autocast that torchao heeds
        granularity = self.config.scaling_granularity
        cast = hp_tensor_to_float8_dynamic(
            x,
            self.config.target_dtype,
            self.linear_mm_config,
            scaling_granularity=granularity,
            # Along the inner dimension of its GEMM: the last one, the weight being stored
            # transposed.
            axiswise_dim=get_maybe_axiswise_dim(-1, granularity),
            round_scales_to_power_of_2=self.power_of_2,
        )
        scale = cast._scale  # noqa: SLF001
        # float8 has no comparison of its own; NaN counts as non-zero on both sides.
        survivors = torch.count_nonzero(cast._data.to(torch.float32))  # noqa: SLF001
        limit = self.format.max * (1 + _SCALE_ROUNDING)
        return (
            self.format.name,
            scale if scale.ndim == 0 else math.nan,
            torch.count_nonzero(x) - survivors,
            torch.count_nonzero((x.to(torch.float32) * scale).abs() > limit),
        )
