"""Optimizers that nobody told of: one for each parameter, stepped within backward, for instance."""

import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Optimizer = torch.optim.Optimizer


class Strays:
    """Finds optimizers of the model's own parameters by their steps.

    One that shares a parameter with an optimizer that is known already is that one's inner or
    outer part, and its steps are no others.

    Attributes:
        stepped: Whether one has stepped since that was last set to False.
    """

    def __init__(
        self, given: Sequence[Optimizer], own_any: Callable[[Sequence[Tensor]], bool]
    ) -> None:
        """Takes the optimizers that are known, and what tells whether tensors are the model's."""
        self._given, self._own_any = given, own_any
        self._ids = {id(one) for one in given}  # held, so nobody else gets them
        self._found: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        self._theirs: set[int] = set()
        self.stepped = False

    def __iter__(self) -> Iterator[Optimizer]:
        """Yields those found, as long as somebody else keeps them."""
        return (one for one, found in self._found.items() if found)

    def known(self, optimizer: Optimizer) -> bool | None:
        """Whether an optimizer is one of them; None where nobody has asked `has` yet."""
        return False if id(optimizer) in self._ids else self._found.get(optimizer)

    def has(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that steps is one of them."""
        known = self.known(optimizer)
        if known is None:
            theirs = {id(parameter) for parameter in _parameters(optimizer)}
            known = self._own_any(_parameters(optimizer)) and not self._shares(theirs)
            self._found[optimizer] = known
            self._theirs |= theirs if known else set()
        return known

    def _shares(self, parameters: set[int]) -> bool:
        given = (id(parameter) for one in self._given for parameter in _parameters(one))
        return not self._theirs.isdisjoint(parameters) or not parameters.isdisjoint(given)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
