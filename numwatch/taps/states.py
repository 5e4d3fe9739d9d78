"""What is known of optimizers: which of their state decays, which is divided by, and where."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numwatch.stats import is_watched_dtype

# State of the parameter's own shape that is neither a moment nor a copy of the weights.
_MASTER = "master"


@dataclass(frozen=True)
class StateKind:
    """What an optimizer does with one tensor of its state.

    Attributes:
        decay: The factor it is multiplied by at each step, None where there is none.
        eps: What is added to its square root, None for what is no second moment.
        corrected_by: The decay of its bias correction, divided out before the root is taken; None
            where there is none.
    """

    decay: float | None = None
    eps: float | None = None
    corrected_by: float | None = None


def kind_of(key: str, state: Mapping[str, Any], group: Mapping[str, Any]) -> StateKind:
    """Returns what the optimizers of torch and their kin do with `state[key]`.

    Args:
        key: Name of the state.
        state: All state of the parameter; tells optimizers apart that share names.
        group: The parameter's group, with the hyperparameters.
    """
    rule = _KINDS.get(key)
    return rule(state, group) if rule else StateKind()


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> StateKind:
    second = _betas(group)[1]
    if "max_exp_avg_sq" in state:  # amsgrad divides by that
        return StateKind(second)
    return StateKind(second, _number(group.get("eps")), second)


def _amsgrad(_state: Mapping[str, Any], group: Mapping[str, Any]) -> StateKind:
    return StateKind(None, _number(group.get("eps")), _betas(group)[1])


def _momentum(state: Mapping[str, Any], group: Mapping[str, Any]) -> StateKind:
    first, second = _betas(group)
    # Lion has no second moment, and its momentum decays by the second beta.
    return StateKind(first if {"exp_avg_sq", "exp_inf"} & state.keys() else second)


def _square_avg(state: Mapping[str, Any], group: Mapping[str, Any]) -> StateKind:
    if "alpha" not in group:  # Adadelta adds eps below the root
        return _decay_of("rho")(state, group)
    centered = "grad_avg" in state  # RMSprop then divides by a variance
    return StateKind(_number(group["alpha"]), None if centered else _number(group.get("eps")))


def _decay_of(name: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], StateKind]:
    return lambda _state, group: StateKind(_number(group.get(name)))


_KINDS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], StateKind]] = {
    "exp_avg_sq": _adam,  # Adam, AdamW, NAdam, RAdam
    "max_exp_avg_sq": _amsgrad,
    "exp_avg": _momentum,
    "exp_inf": lambda _state, group: StateKind(_betas(group)[1]),  # Adamax: no mean of squares
    "square_avg": _square_avg,
    "acc_delta": _decay_of("rho"),
    "sum": lambda _state, group: StateKind(None, _number(group.get("eps"))),  # Adagrad
    "momentum_buffer": _decay_of("momentum"),
}


def tensors_of(state: Mapping[str, Any], parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor of the state that has an element for each of the parameter's."""
    for key, value in state.items():
        if (
            isinstance(value, Tensor)
            and value.shape == parameter.shape
            and value.dim() > 0
            and value.layout is torch.strided
            and is_watched_dtype(value.dtype)
        ):
            yield key, value


def master_of(state: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
    """Returns the wider copy of the weights that an optimizer keeps in its state, or None."""
    named = {key: value for key, value in state.items() if _MASTER in str(key)}
    for _, value in tensors_of(named, parameter) if named else ():
        if value.dtype.itemsize > parameter.dtype.itemsize:
            return value
    return None


def bias_corrections(decay: float | None, steps: Sequence[Any], device: torch.device) -> Tensor:
    """Returns 1 - decay^step of each parameter, 1 where there is no correction or no step.

    Args:
        decay: The decay.
        steps: k counts of steps: 0-d tensors, numbers or None.
        device: Where the state is.

    Returns:
        FP64 [k], on that device.
    """
    if decay is None:
        return torch.ones(len(steps), dtype=torch.float64, device=device)
    never = torch.tensor(torch.inf, device="cpu")  # whose power is 0
    given = [
        step.detach() if isinstance(step, Tensor) else torch.tensor(step, device="cpu")
        for step in (never if step is None else step for step in steps)
    ]
    if len({(step.dtype, step.device, step.shape) for step in given}) > 1:
        home = torch.device("cpu") if all(step.is_cpu for step in given) else device
        given = [step.reshape(()).double().to(home, non_blocking=True) for step in given]
    counts = torch.stack(given).reshape(-1).double()
    return (1.0 - torch.pow(decay, counts)).to(device, non_blocking=True)


def _betas(group: Mapping[str, Any]) -> tuple[float | None, float | None]:
    betas = group.get("betas")
    if not isinstance(betas, (tuple, list)) or len(betas) < 2:  # noqa: PLR2004
        return None, None
    return _number(betas[0]), _number(betas[1])


def _number(value: object) -> float | None:
    # A tensor on a device would have to be waited for.
    return float(value) if isinstance(value, (int, float)) else None
