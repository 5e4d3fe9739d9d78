"""The Trainer arguments that a plan's training part asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision, Precision

from numwatch.plan import LossScale, Plan
from numwatch.plan.exports.training import NO_GROWTH, precision_of

_COMPUTE = {"16": "fp16", "bf16": "bf16", "32": "fp32", "64": "fp64"}


def training_arguments(plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the precision arguments of a Trainer for a plan; none where the given ones fit.

    Args:
        plan: The plan.
        given: The Trainer's arguments without it.
    """
    wanted = plan.training
    if wanted.loss_scale is None and _of(given) == (wanted.compute, wanted.weights):
        return {}
    plugins = [one for one in as_list(given.get("plugins")) if not isinstance(one, Precision)]
    if wanted.compute == "fp16" and wanted.weights == "fp32":
        device = "cuda" if _on_cuda(given) else "cpu"
        plugin = MixedPrecision("16-mixed", device, scaler_of(wanted.loss_scale, device))
        return {"precision": None, "plugins": [*plugins, plugin]}
    return {"precision": precision_of(wanted), "plugins": plugins}


def training_fault(plan: Plan, precision: str, scaler: Any) -> str | None:
    """Returns where a Trainer does otherwise than a plan's training part, None where it does not.

    Args:
        plan: The plan.
        precision: The Trainer's.
        scaler: Its gradient scaler, or None.
    """
    wanted = plan.training
    width, _, kind = precision.partition("-")
    compute = _COMPUTE.get(width, "fp32")
    weights = "fp32" if kind == "mixed" else compute
    if (compute, weights) != (wanted.compute, wanted.weights):
        return (
            f"the plan computes in {wanted.compute} with {wanted.weights} weights, the Trainer's "
            f"precision is {precision}: give it precision={precision_of(wanted)!r}"
        )
    if wanted.loss_scale is None:
        return None
    has = None if scaler is None else float(scaler.get_scale())
    if has == wanted.loss_scale.init:
        return None
    given = "none" if has is None else f"{has:g}"
    return f"the plan wants a loss scale of {wanted.loss_scale.init:g}, the Trainer has {given}"


def scaler_of(loss_scale: LossScale | None, device: str) -> torch.amp.GradScaler:
    """Returns the gradient scaler of a plan, torch's own defaults where it says nothing."""
    if loss_scale is None:
        return torch.amp.GradScaler(device)
    interval = loss_scale.growth_interval
    return torch.amp.GradScaler(
        device,
        init_scale=loss_scale.init,
        growth_interval=NO_GROWTH if interval is None else interval,
    )


def as_list(given: Any) -> list[Any]:
    """Returns what a Trainer takes as one, several or none as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _of(given: Mapping[str, Any]) -> tuple[str, str]:
    """What a Trainer's arguments compute in and store weights in."""
    chosen = [one for one in as_list(given.get("plugins")) if isinstance(one, Precision)]
    precision = chosen[0].precision if chosen else given.get("precision") or "32-true"
    # Lightning reads the bare widths as mixed.
    precision = {"16": "16-mixed", "bf16": "bf16-mixed"}.get(str(precision), str(precision))
    width, _, kind = precision.partition("-")
    compute = _COMPUTE.get(width, "fp32")
    return compute, "fp32" if kind == "mixed" else compute


def _on_cuda(given: Mapping[str, Any]) -> bool:
    accelerator = given.get("accelerator", "auto")
    return accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())
