"""Optimizers that nobody told of: one for each parameter, stepped within backward, for instance."""

import weakref
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from numwatch.taps.parameters import Parameters

Optimizer = torch.optim.Optimizer


class Strays:
    """Finds optimizers of the model's own parameters by their steps.

    One that shares a parameter with an optimizer that is known already is that one's inner or
    outer part, and its steps are no others.

    Attributes:
        given: The optimizers that are known, or what has taken their places.
        stepped: Whether one has stepped in the step under way.
    """

    def __init__(self, given: Sequence[Optimizer], parameters: Parameters) -> None:
        """Takes the optimizers that are known, and the model's parameters."""
        self.given, self._parameters = list(given), parameters
        self._ids = {id(one) for one in given}  # held, so nobody else gets them
        # By identity: an optimizer of the user's may have no hash.
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._found: list[weakref.ref[Optimizer]] = []
        self._holders: dict[int, weakref.ref[Optimizer]] = {}
        self.stepped = False

    def __iter__(self) -> Iterator[Optimizer]:
        """Yields those found, as long as somebody else keeps them."""
        return (one for found in tuple(self._found) if (one := found()) is not None)

    @property
    def idle(self) -> bool:
        """Whether there are some, and none has stepped in the step under way."""
        return not self.stepped and any(True for _ in self)

    @property
    def possible(self) -> bool:
        """Whether the model has parameters that no given optimizer holds."""
        held = {id(parameter) for one in self.given for parameter in parameters_of(one)}
        return not self._parameters.are_within(held)

    def known(self, optimizer: Optimizer) -> bool | None:
        """Whether an optimizer is one of them; None where nobody has asked `has` yet."""
        if id(optimizer) in self._ids:
            return False
        known: bool | None = self._known.get(optimizer)
        return known

    def has(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that steps is one of them."""
        known = self.known(optimizer)
        if known is None:
            theirs = parameters_of(optimizer)
            known = self._parameters.own_any(theirs) and not self._shares(theirs)
            self._known[optimizer] = known
            if known:
                ref = weakref.ref(optimizer, partial(_discard, self._found))
                self._found.append(ref)
                self._holders.update((id(parameter), ref) for parameter in theirs)
        return known

    def replace(self, given: Optimizer, successor: Optimizer) -> None:
        """Lets go of a given optimizer for one that has taken its place."""
        self.given = [successor if one is given else one for one in self.given]
        self._ids = {id(one) for one in self.given}
        self._found[:] = [ref for ref in self._found if ref() is not successor]
        # Who shared parameters with the one that is gone may share none now.
        self._known = WeakIdKeyDictionary()
        for one in self:
            self._known[one] = True

    def _shares(self, parameters: Sequence[Tensor]) -> bool:
        ids = {id(parameter) for parameter in parameters}
        holders = (self._holders[each] for each in ids & self._holders.keys())
        if any(holder() is not None for holder in holders):
            return True
        return not ids.isdisjoint(id(own) for one in self.given for own in parameters_of(one))


def _discard(found: list[weakref.ref[Optimizer]], gone: weakref.ref[Optimizer]) -> None:
    if gone in found:  # not that of a successor
        found.remove(gone)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Returns the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
