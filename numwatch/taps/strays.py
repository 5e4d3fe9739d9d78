"""Optimizers that nobody told of: one for each parameter, stepped within backward, for instance."""

import weakref
from collections.abc import Iterator, Sequence

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
        stepped: Whether one has stepped since `reset`.
    """

    def __init__(self, given: Sequence[Optimizer], parameters: Parameters) -> None:
        """Takes the optimizers that are known, and the model's parameters."""
        self._given, self._parameters = list(given), parameters
        self._ids = {id(one) for one in given}  # held, so nobody else gets them
        # By identity: an optimizer of the user's may have no hash.
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._found: list[weakref.ref[Optimizer]] = []
        self._holders: dict[int, weakref.ref[Optimizer]] = {}
        self._passed: dict[int, weakref.ref[Optimizer]] = {}
        self.stepped = False

    def __iter__(self) -> Iterator[Optimizer]:
        """Yields those found, as long as somebody else keeps them."""
        return (one for found in tuple(self._found) if (one := found()) is not None)

    @property
    def idle(self) -> bool:
        """Whether there are some, and none has stepped since `reset`."""
        return not self.stepped and any(True for _ in self)

    @property
    def possible(self) -> bool:
        """Whether the model has parameters that no given optimizer holds."""
        held = {id(parameter) for one in self._given for parameter in _parameters(one)}
        return not self._parameters.are_within(held)

    def reset(self) -> None:
        """Starts a step."""
        self.stepped = False
        self._passed.clear()

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
            theirs = _parameters(optimizer)
            known = self._parameters.own_any(theirs) and not self._shares(theirs)
            self._known[optimizer] = known
            if known:
                ref = weakref.ref(optimizer, self._found.remove)
                self._found.append(ref)
                self._holders.update((id(parameter), ref) for parameter in theirs)
        return known

    def pass_by(self, optimizer: Optimizer) -> None:
        """Takes note of a step by one that is none of them, nor given."""
        if id(optimizer) not in self._ids:
            self._passed[id(optimizer)] = weakref.ref(optimizer)

    def successor_of(self, given: Optimizer) -> Optimizer | None:
        """Returns who of those passed by since `reset` steps parameters of a given optimizer."""
        held = {id(parameter) for parameter in _parameters(given)} if self._passed else set()
        for ref in tuple(self._passed.values()):  # other threads' optimizers step meanwhile
            one = ref()
            if one is not None and not held.isdisjoint(map(id, _parameters(one))):
                return one
        return None

    def replace(self, given: Optimizer, successor: Optimizer) -> None:
        """Lets go of a given optimizer for one that has taken its place."""
        self._given = [successor if one is given else one for one in self._given]
        self._ids = {id(one) for one in self._given}
        self._passed.pop(id(successor), None)

    def _shares(self, parameters: Sequence[Tensor]) -> bool:
        ids = {id(parameter) for parameter in parameters}
        holders = (self._holders[each] for each in ids & self._holders.keys())
        if any(holder() is not None for holder in holders):
            return True
        return not ids.isdisjoint(id(own) for one in self._given for own in _parameters(one))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
