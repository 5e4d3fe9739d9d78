"""The one place that knows the insides of a gradient scaler."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Scaler(Protocol):
    """Torch's `GradScaler`, or what tells of its scale as that does."""

    def is_enabled(self) -> bool:
        """Whether it scales at all."""

    def get_scale(self) -> float:
        """Returns the scale in force; waits for the device where that holds it."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what it needs to go on."""


def loss_scale(scaler: Scaler | None) -> Tensor | float:
    """Returns the scale in force, as a device tensor: `get_scale` would wait for the device.

    It is the initial scale before the scaler first scaled anything, and 1.0 without a scaler or
    with a disabled one.
    """
    if scaler is None or not scaler.is_enabled():
        return 1.0
    scale: Tensor | None = getattr(scaler, "_scale", None)
    return scaler.get_scale() if scale is None else scale.detach()


def found_inf(scaler: Scaler | None, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns, after `unscale_`, a device flag per device that held non-finite gradients."""
    if scaler is None:
        return []
    states: Mapping[int, Any] = getattr(scaler, "_per_optimizer_states", {})
    state = states.get(id(optimizer)) or {}
    return list(state.get("found_inf_per_device", {}).values())


def handles_unscaling(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer unscales inside its `step`, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
