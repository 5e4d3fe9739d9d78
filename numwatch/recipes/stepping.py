"""The rules of `scaling`, a step of tensors at a time.

On the amax's own device: nothing here waits for it. An amax may stand for many tensors at once; all
rules work element by element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from numwatch.recipes.scaling import CURRENT_EPS, FP32_EXPONENT, FP32_MAX

if TYPE_CHECKING:
    from torch import Tensor

    from numwatch.formats import Format
    from numwatch.recipes.scaling import (
        CurrentScaling,
        DelayedScaling,
        Floats,
        State,
        StaticScaling,
        TensorScaling,
    )


def static_scale(recipe: StaticScaling, amax: Tensor) -> Tensor:
    """Returns the scale, for each amax."""
    return torch.full_like(amax, recipe.scale, dtype=torch.float32)


def current_scale(recipe: CurrentScaling, amax: Tensor, fmt: Format) -> Tensor:
    """Returns the scale of a tensor with this amax."""
    wide = amax.to(torch.float64)
    scale = (fmt.max / wide.clamp(min=CURRENT_EPS)).to(torch.float32)
    if recipe.power_of_two:
        scale = floor_to_power_of_two(scale)
    return torch.where((wide > 0) & wide.isfinite(), scale, 1.0)


def delayed_start(recipe: DelayedScaling, like: Tensor) -> State:
    """Returns an empty history and the scale 1."""
    return {
        "history": like.new_zeros((recipe.history, *like.shape), dtype=torch.float32),
        "scale": torch.ones_like(like, dtype=torch.float32),
    }


def delayed_step(
    recipe: DelayedScaling, state: State, amax: Tensor, fmt: Format
) -> tuple[Tensor, State]:
    """Returns the scale that the steps before this one left, and what to remember."""
    scale, before = state["scale"], state["history"]
    # Slot 0 is the step at hand; slot 1 is the oldest, which the roll lets go of.
    history = torch.cat([amax.to(torch.float32)[None], before[1:]])
    chosen = _chosen(recipe, history)
    # A true FP32 division, as fused kernels do; `number / tensor` would round twice.
    following = torch.full_like(chosen, recipe.largest(fmt)) / chosen
    usable = (chosen > 0) & chosen.isfinite()
    following = torch.where(usable, following.clamp(max=FP32_MAX), scale)
    rolled = torch.cat([torch.zeros_like(history[:1]), history[2:], history[:1]])
    rolled = rolled[: recipe.history]
    if not callable(recipe.algorithm):
        ran = history[0] != 0
        following, rolled = torch.where(ran, following, scale), torch.where(ran, rolled, before)
    return scale, {"history": rolled, "scale": following}


def stepped(recipe: TensorScaling, amaxes: Floats, fmt: Format) -> Floats:
    """Returns the scale at each of one tensor's casts, FP32 [n], step by step."""
    if not len(amaxes):
        return amaxes
    history = torch.from_numpy(amaxes)[:, None]
    state, scales = recipe.start(history[0]), []
    for amax in history:
        scale, state = recipe.step(state, amax, fmt)
        scales.append(scale)
    return torch.cat(scales).numpy()


def scales_over(recipe: TensorScaling, amaxes: Tensor, fmt: Format) -> Tensor:
    """Returns the scale in force at each step of a history of amaxes that misses none.

    Args:
        recipe: The rule.
        amaxes: [steps, ...]; converted to FP32.
        fmt: The format cast to.

    Returns:
        FP32 in the shape of `amaxes`, on the CPU.
    """
    history = amaxes.detach().to("cpu", torch.float32)
    if not history.numel():
        return history
    slots = history.reshape(len(history), -1)
    scales = [recipe.over(np.ascontiguousarray(slot), fmt) for slot in slots.numpy().T]
    return torch.from_numpy(np.stack(scales, axis=1)).reshape(history.shape)


def floor_to_power_of_two(scale: Tensor) -> Tensor:
    """Returns the largest power of two at or below each normal FP32 scale; inf and NaN stay."""
    powers = (scale.view(torch.int32) & FP32_EXPONENT).view(torch.float32)
    return torch.where(scale.isfinite(), powers, scale)


def _chosen(recipe: DelayedScaling, history: Tensor) -> Tensor:
    if callable(recipe.algorithm):
        return recipe.algorithm(history)
    if recipe.algorithm == "most_recent":
        return history[0]
    return torch.where(history.isnan(), 0.0, history).amax(dim=0)
