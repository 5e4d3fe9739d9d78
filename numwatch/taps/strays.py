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

    def __init__(self, given: Sequence[Optimizer], is_own: Callable[[Tensor], bool]) -> None:
        """Takes the optimizers that are known, and what tells whether a tensor is the model's."""
        self._given, self._is_own = given, is_own
        self._found: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        self.stepped = False

    def __iter__(self) -> Iterator[Optimizer]:
        """Yields those found, as long as somebody else keeps them."""
        return (one for one, found in self._found.items() if found)

    def has(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that steps is one of them."""
        if any(one is optimizer for one in self._given):
            return False
        known = self._found.get(optimizer)
        if known is None:
            theirs = _parameters(optimizer)
            known = any(map(self._is_own, theirs)) and not self._share(theirs)
            self._found[optimizer] = known
        return known

    def _share(self, parameters: Sequence[Tensor]) -> bool:
        own = {id(parameter) for parameter in parameters}
        return any(id(each) in own for one in (*self._given, *self) for each in _parameters(one))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
