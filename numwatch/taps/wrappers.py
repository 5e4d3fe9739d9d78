"""What Fabric, accelerate, DDP and DeepSpeed wrap around a user's model and optimizers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from numwatch.errors import NumwatchError
from numwatch.taps.scaler import Scaler

_ENGINE, _ENGINE_OPTIMIZER = "DeepSpeedEngine", "DeepSpeedOptimizer"
_OPTIMIZERS = frozenset({"_FabricOptimizer", "AcceleratedOptimizer", "LightningOptimizer"})
_FABRIC_MODULE = "_FabricModule"
_MODULES = frozenset({_FABRIC_MODULE, "DistributedDataParallel", _ENGINE})


def plain_model(model: Any) -> nn.Module:
    """Returns the user's own model, whose modules have the paths that the user knows."""
    while _is_a(model, _MODULES):
        model = model.module
    own: nn.Module = model
    return own


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the optimizer that is really stepped: it is what hooks and scalers are given."""
    while _is_a(optimizer, {*_OPTIMIZERS, _ENGINE_OPTIMIZER}):
        optimizer = optimizer.optimizer
    own: torch.optim.Optimizer = optimizer
    return own


def engine_optimizer_behind(optimizer: Any) -> Any | None:
    """Returns the optimizer of a DeepSpeed engine that a wrapper leads to, or that is one."""
    while _is_a(optimizer, _OPTIMIZERS):
        optimizer = optimizer.optimizer
    return optimizer if _is_a(optimizer, {_ENGINE_OPTIMIZER}) else None


def optimizer_behind(model: Any) -> Any | None:
    """Returns the optimizer of a model that has one, as a DeepSpeed engine does."""
    return model.optimizer if _is_a(model, {_ENGINE}) else None


def optimizers_in(given: Any) -> list[Any]:
    """Returns the optimizers that a user gave, one, several or None; wrappers are optimizers too.

    Raises:
        NumwatchError: One of them has no `param_groups`.
    """
    if given is None:
        return []
    several = isinstance(given, Iterable) and not hasattr(given, "param_groups")
    optimizers = list(given) if several else [given]
    for one in optimizers:
        if not hasattr(one, "param_groups"):
            raise NumwatchError(
                "optimizer takes an optimizer, a list of them or None; "
                f"a {type(one).__name__} came, which has no `param_groups`"
            )
    return optimizers


def scaler_behind(wrapped: Any) -> Scaler | None:
    """Returns the gradient scaler that a wrapper of a model or an optimizer steps with, if any."""
    if _is_a(wrapped, {"AcceleratedOptimizer"}):
        found = wrapped.scaler
    else:
        found = getattr(_fabric_precision(wrapped), "scaler", None)
    return found if isinstance(found, torch.amp.GradScaler) else None


def precision_of(wrapped: Any) -> str | None:
    """Returns the precision of a wrapper as Fabric names it; None where it names none."""
    name = getattr(_fabric_precision(wrapped), "precision", None)
    return name if isinstance(name, str) else None


def _fabric_precision(wrapped: Any) -> Any:
    """The precision plugin of what Fabric has set up."""
    fabrics = {_FABRIC_MODULE, "_FabricOptimizer"}
    strategy = wrapped._strategy if _is_a(wrapped, fabrics) else None  # noqa: SLF001  # no public way
    return getattr(strategy, "precision", None)


def _is_a(thing: object, names: set[str] | frozenset[str]) -> bool:
    """By name: none of these libraries is imported for it."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)
