"""The parameters an optimizer updates, by the names the model has for them."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from numwatch.stats import is_watched_dtype
from numwatch.taps.homes import Home, home_in_optimizer, homes_in
from numwatch.taps.placement import counts_here, is_dtensor, local_part, placement_of, shard_of
from numwatch.taps.sampling import SAMPLES, sampled, stride_of
from numwatch.taps.selection import clean_path, is_update_wanted

MAX_SAMPLES = 2**20
"""Sampled elements of all parameters together, unless all are asked for: it bounds the memory."""
_LEAST_SAMPLES = 1024


@dataclass(frozen=True, eq=False)
class Known:
    """What does not change of a parameter from step to step.

    Attributes:
        home: Where it stands.
        name: The model's for it.
        shape: Its shape.
        dtype: Its dtype, which `model.half()` changes.
        measured: Whether its updates are wanted, it is dense, and this rank answers for it.
        placement: Where several ranks train, how it is placed over them.
        shard: Which part of it this rank holds; see `placement.shard_of`.
        stride: The step between sampled elements.
        sampled: How many are sampled.
        numel: Elements of this rank's part.
    """

    home: Home
    name: str
    shape: torch.Size
    dtype: torch.dtype
    measured: bool
    placement: str | None
    shard: str | None
    stride: int
    sampled: int
    numel: int


class Updated(NamedTuple):
    """A parameter, and the group of the optimizer that it is in."""

    known: Known
    parameter: nn.Parameter
    group: dict[str, Any]

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.known.name


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
        self._names: dict[int, tuple[str, Home]] = {}
        self._foreign: list[Home] = []
        self._known: dict[int, Known] = {}
        count = sum(1 for _ in model.parameters())
        share = max(MAX_SAMPLES // max(count, 1), _LEAST_SAMPLES)
        self.limit = None if limit is None else min(limit, share)

    def named(self, optimizer: torch.optim.Optimizer) -> Iterator[Updated]:
        """Yields every parameter of an optimizer that has a dense gradient."""
        for parameter, group, at in _parameters_of(optimizer):
            if _is_dense(parameter) and has_dense_gradient(parameter):
                yield Updated(self._know(parameter, optimizer, at), parameter, group)

    def measured(self, optimizer: torch.optim.Optimizer) -> Iterator[Updated]:
        """Yields those whose updates the user wants measured, with or without a gradient yet."""
        for parameter, group, at in _parameters_of(optimizer):
            if parameter.requires_grad:
                known = self._know(parameter, optimizer, at)
                if known.measured:
                    yield Updated(known, parameter, group)

    def unreadable(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[bool, str]]:
        """Yields trained parameters of complex numbers (True) or with a sparse gradient (False)."""
        for parameter, _, at in _parameters_of(optimizer):
            sparse = parameter.grad is not None and parameter.grad.layout is not torch.strided
            if parameter.requires_grad and (sparse or parameter.is_complex()):
                name = self._know(parameter, optimizer, at).name
                if is_update_wanted(name, *self._globs):
                    yield parameter.is_complex(), name

    def own_any(self, tensors: Sequence[Tensor]) -> bool:
        """Whether some of these tensors are parameters of the model."""
        if any(map(self._is_known, tensors)):
            return True
        self._learn_names()
        return any(map(self._is_known, tensors))

    def are_within(self, ids: AbstractSet[int]) -> bool:
        """Whether all parameters of the model are among those with these ids."""
        return all(id(parameter) in ids for parameter in self._model.parameters())

    def follow(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
        """Knows what the model does not have by its place in a new optimizer, not in an old one."""
        places = {id(parameter): at for parameter, _, at in _parameters_of(new)}
        for number, home in enumerate(self._foreign):
            if home.owner() is old and (at := places.get(id(home.look(old)))) is not None:
                self._foreign[number] = home_in_optimizer(new, *at)

    def sample(self, tensor: Tensor) -> Tensor:
        """Returns the sample [n] of this rank's part of a parameter or a tensor of its shape."""
        return sampled(local_part(tensor), self.limit)

    def _know(
        self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer, at: tuple[int, int]
    ) -> Known:
        known = self._known.get(id(parameter))
        if (
            known is None
            or not known.home.holds(parameter)
            or known.dtype is not parameter.dtype
            or known.shape != parameter.shape
        ):
            name, home = self._name_of(parameter, optimizer, at)
            own = local_part(parameter)
            stride = stride_of(tuple(own.shape), self.limit)
            known = self._known[id(parameter)] = Known(
                home,
                name,
                parameter.shape,
                parameter.dtype,
                _is_dense(parameter)
                and counts_here(parameter)
                and is_update_wanted(name, *self._globs),
                placement_of(parameter),
                shard_of(parameter),
                stride,
                -(-own.numel() // stride),
                own.numel(),
            )
        return known

    def _name_of(
        self, parameter: Tensor, optimizer: torch.optim.Optimizer, at: tuple[int, int]
    ) -> tuple[str, Home]:
        if not self._is_known(parameter):
            self._learn_names()
        if self._is_known(parameter):
            return self._names[id(parameter)]
        return self._foreign_name_of(parameter, home_in_optimizer(optimizer, *at))

    def _is_known(self, parameter: Tensor) -> bool:
        known = self._names.get(id(parameter))
        return known is not None and known[1].holds(parameter)

    def _learn_names(self) -> None:
        self._names = {}
        for name, parameter, home in homes_in(self._model):
            self._names.setdefault(id(parameter), (clean_path(name), home))

    def _foreign_name_of(self, parameter: Tensor, home: Home) -> tuple[str, Home]:
        """Names what an optimizer holds and the model does not: a loss's own temperature."""
        for number, known in enumerate(self._foreign):
            if known.holds(parameter):
                return f"outside_the_model.{number}", known
        self._foreign.append(home)
        return f"outside_the_model.{len(self._foreign) - 1}", home


def _parameters_of(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[nn.Parameter, dict[str, Any], tuple[int, int]]]:
    """Yields an optimizer's parameters that are made, with their groups and places in it."""
    for i, group in enumerate(optimizer.param_groups):
        for j, parameter in enumerate(group["params"]):
            if not is_lazy(parameter):
                yield parameter, group, (i, j)


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
