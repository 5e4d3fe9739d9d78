"""What an optimizer would have done to low-precision weights in FP32.

The same class runs one step on FP32 copies of the sampled elements, with the state they had before
the step. It is a new object that knows nothing of the user's parameters, so it can't harm them.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

APPLIED, EXACT, ESTIMATE = "applied", "exact", "estimate"
"""Where an intended update comes from: see `numwatch.step_entries.Update`."""

_ELEMENT_WISE = frozenset(
    {
        "ASGD",
        "Adadelta",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "Lion",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    }
)
"""Optimizers that update each element from that element's own gradient and state alone."""


_LIBRARIES = frozenset({"lion_pytorch", "timm", "torch"})
"""Whose optimizers are known to touch their parameters and their state alone."""

_NARROW_BYTES = 2
_NO_SETTINGS = ("params", "param_names")


@dataclass(frozen=True, eq=False)
class Before:
    """A parameter's sample as it was before the step.

    Attributes:
        weight: [n], in the parameter's dtype.
        state: Its optimizer's state: tensors of the parameter's shape sampled in FP32, other small
            ones copied. Empty where it is not needed.
    """

    weight: Tensor
    state: Mapping[str, Any]


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype are stored in a format that swallows updates."""
    return dtype.itemsize <= _NARROW_BYTES


def is_element_wise(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a sample of a parameter is updated as it would be within the whole."""
    cls = library_class(optimizer)
    return cls is not None and cls.__name__ in _ELEMENT_WISE


def library_class(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    """Returns the class of a library whose step the optimizer takes; None for one of the user's.

    Code of the user's own, a constructor too, may draw random numbers, count in its class or reach
    for the weights.
    """
    step = inspect.unwrap(type(optimizer).step)
    for cls in type(optimizer).__mro__:
        library = cls.__module__.partition(".")[0] in _LIBRARIES
        if library and issubclass(cls, torch.optim.Optimizer):
            return cls if inspect.unwrap(cls.step) is step else None
    return None


def intended_updates(
    optimizer: torch.optim.Optimizer,
    before: Sequence[Before],
    gradients: Sequence[Tensor],
    groups: Sequence[Mapping[str, Any]],
) -> list[Tensor] | None:
    """Returns the update of each sample, FP32 [n]; None where the optimizer can't be run so.

    Args:
        optimizer: The user's; it is not touched.
        before: What was sampled before its step.
        gradients: The samples' gradients [n] as the optimizer was given them, unscaled.
        groups: Each parameter's group, whose hyperparameters hold for this step.
    """
    cls = library_class(optimizer)
    if cls is None:
        return None
    weights = [nn.Parameter(one.weight.float()) for one in before]
    old = [weight.detach().clone() for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.float()
    twin = _twin(cls, optimizer.defaults, weights, groups)
    if twin is None:
        return None
    for weight, one in zip(weights, before, strict=True):
        if one.state:
            twin.state[weight] = dict(one.state)
    try:
        _unhooked(cls.step)(twin)
    except Exception:  # noqa: BLE001  # Muon takes whole matrices, LBFGS a closure
        return None
    return [weight.detach() - was for weight, was in zip(weights, old, strict=True)]


def copied_state(
    state: Mapping[str, Any], parameter: Tensor, sample: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Returns a copy of a parameter's state for its sample, FP32 where it is sampled.

    State of another shape (factored moments, a history) is left out: the optimizer then starts
    from none, which an estimate must do with.
    """
    copied: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            if isinstance(value, (int, float, bool, type(None))):
                copied[key] = value  # others are no state of the optimizer's own
        elif value.numel() <= 1 and value.shape != parameter.shape:
            copied[key] = value.detach().clone()
        elif value.shape == parameter.shape:
            copied[key] = sample(value).float().clone()
        else:
            return {}
    return copied


def _unhooked(step: Any) -> Any:
    """Returns an optimizer's step without the global hooks that torch calls around it."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_leaf  # a learning rate
    return isinstance(value, (int, float, str, type(None)))


def _twin(
    cls: type[torch.optim.Optimizer],
    defaults: Mapping[str, Any],
    weights: Sequence[nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
) -> torch.optim.Optimizer | None:
    members: dict[int, list[nn.Parameter]] = {}
    settings: dict[int, dict[str, Any]] = {}
    for weight, group in zip(weights, groups, strict=True):
        members.setdefault(id(group), []).append(weight)
        settings[id(group)] = {k: v for k, v in group.items() if k not in _NO_SETTINGS}
    accepted = inspect.signature(cls).parameters
    arguments = {key: value for key, value in defaults.items() if key in accepted}
    given = [value for one in (*settings.values(), arguments) for value in one.values()]
    if not all(map(_is_plain, given)):
        return None  # who knows what a copy of it would do
    twins = [{**copy.deepcopy(settings[key]), "params": of} for key, of in members.items()]
    try:
        return cls(twins, **copy.deepcopy(arguments))
    except Exception:  # noqa: BLE001  # Muon takes matrices alone
        return None
