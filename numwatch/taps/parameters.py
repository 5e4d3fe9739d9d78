"""The parameters an optimizer updates, by the names the model has for them."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from numwatch.stats import is_watched_dtype
from numwatch.taps.placement import counts_here, is_dtensor, local_part
from numwatch.taps.sampling import SAMPLES, sampled
from numwatch.taps.selection import clean_path, is_update_wanted

MAX_SAMPLES = 2**20
"""Sampled elements of all parameters together, unless all are asked for: it bounds the memory."""
_LEAST_SAMPLES = 1024


@dataclass(frozen=True, eq=False)
class Updated:
    """A parameter with a gradient, and the group of the optimizer that it is in."""

    name: str
    parameter: nn.Parameter
    group: dict[str, Any]


class Parameters:
    """Names the parameters of optimizers, and samples them.

    Attributes:
        limit: Elements sampled of each at most, None for all.
    """

    def __init__(
        self,
        model: nn.Module,
        limit: int | None = SAMPLES,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        self._model, self._globs = model, (include, exclude)
        self._names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._foreign: list[weakref.ref[Tensor]] = []
        self._wanted: dict[str, bool] = {}
        count = sum(1 for _ in model.parameters())
        share = max(MAX_SAMPLES // max(count, 1), _LEAST_SAMPLES)
        self.limit = None if limit is None else min(limit, share)

    def named(self, optimizer: torch.optim.Optimizer) -> Iterator[Updated]:
        """Yields every parameter of an optimizer that has a dense gradient."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if _is_dense(parameter) and has_dense_gradient(parameter):
                    name = self._name_of(parameter)
                    yield Updated(name, parameter, group)

    def measured(self, optimizer: torch.optim.Optimizer) -> Iterator[Updated]:
        """Yields those whose updates the user wants measured, with or without a gradient yet."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not (parameter.requires_grad and _is_dense(parameter)):
                    continue
                if not counts_here(parameter):
                    continue
                name = self._name_of(parameter)
                if name not in self._wanted:
                    self._wanted[name] = is_update_wanted(name, *self._globs)
                if self._wanted[name]:
                    yield Updated(name, parameter, group)

    def sample(self, tensor: Tensor) -> Tensor:
        """Returns the sample [n] of this rank's part of a parameter or a tensor of its shape."""
        return sampled(local_part(tensor), self.limit)

    def _name_of(self, parameter: Tensor) -> str:
        ref, name = self._names.get(id(parameter), (None, ""))
        if ref is None or ref() is not parameter:  # an id is used again
            self._names = {
                id(p): (weakref.ref(p), clean_path(name))
                for name, p in self._model.named_parameters()
            }
            _, name = self._names.get(id(parameter), (None, ""))
        return name or self._foreign_name_of(parameter)

    def _foreign_name_of(self, parameter: Tensor) -> str:
        """Names what an optimizer holds and the model does not: a loss's own temperature."""
        for number, ref in enumerate(self._foreign):
            if ref() is parameter:
                return f"outside_the_model.{number}"
        self._foreign.append(weakref.ref(parameter))
        return f"outside_the_model.{len(self._foreign) - 1}"


def has_dense_gradient(parameter: Tensor) -> bool:
    """Whether there is a gradient that can be read element by element; a sparse one can't."""
    return parameter.grad is not None and parameter.grad.layout is torch.strided


def _is_dense(tensor: Tensor) -> bool:
    """Whether a parameter's elements can be looked at as they are."""
    return (
        is_watched_dtype(tensor.dtype)
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        and (is_dtensor(tensor) or not is_traceable_wrapper_subclass(tensor))
    )
