"""Optimizers that nobody told of: one for each parameter, stepped within backward, for instance."""

import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

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
        self._owners = {id(one) for one in given if parameters.own_any(_parameters(one))}
        # By identity: an optimizer of the user's may have no hash.
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._found: list[weakref.ref[Optimizer]] = []
        self._holders: dict[int, weakref.ref[Optimizer]] = {}
        self._passed: dict[int, weakref.ref[Optimizer]] = {}
        self._former: dict[int, weakref.ref[Optimizer]] = {}
        self._beside: WeakIdKeyDictionary = WeakIdKeyDictionary()
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
                ref = weakref.ref(optimizer, partial(_discard, self._found))
                self._found.append(ref)
                self._holders.update((id(parameter), ref) for parameter in theirs)
        return known

    def pass_by(self, optimizer: Optimizer) -> None:
        """Takes note of a step by one that was not given."""
        if id(optimizer) not in self._ids:
            self._passed[id(optimizer)] = weakref.ref(optimizer)

    def successor_of(self, given: Optimizer, *, missed: bool) -> Optimizer | None:
        """Returns who has stepped since `reset` in the place of a given optimizer.

        One that ever stepped beside it is its inner or outer part, not its successor.

        Args:
            given: The optimizer.
            missed: Whether it has not stepped itself. If it has, the place may still be another's:
                one that was only left out, by a scaler say, while its outer part stepped.
        """
        passing = [ref() for ref in tuple(self._passed.values())]  # other threads' step meanwhile
        passed = [one for one in passing if one is not None and one not in self._beside]
        held = {id(parameter) for parameter in _parameters(given)} if passed else set()
        sharing = [one for one in passed if not held.isdisjoint(map(id, _parameters(one)))]
        if missed:
            strays = filter(self.known, passed if passed and self._is_over(given) else ())
            return next(chain(sharing, strays), None)
        former = self._former.get(id(given), _nobody)()
        back = next((one for one in sharing if one is former), None)
        for one in sharing if back is None else [given]:
            self._beside[one] = True
        return back

    def replace(self, given: Optimizer, successor: Optimizer) -> None:
        """Lets go of a given optimizer for one that has taken its place."""
        if self._former.pop(id(given), _nobody)() is not successor:
            self._former[id(successor)] = weakref.ref(given)
        self._given = [successor if one is given else one for one in self._given]
        self._ids = {id(one) for one in self._given}
        self._owners = self._owners - {id(given)} | {id(successor)}
        self._passed.pop(id(successor), None)
        self._found[:] = [ref for ref in self._found if ref() is not successor]
        # Who shared parameters with the one that is gone may share none now.
        self._known = WeakIdKeyDictionary()
        for one in self:
            self._known[one] = True
        self._parameters.follow(given, successor)

    def _is_over(self, given: Optimizer) -> bool:
        """Whether the model has let go of all parameters that an optimizer had of it."""
        return id(given) in self._owners and not self._parameters.own_any(_parameters(given))

    def _shares(self, parameters: Sequence[Tensor]) -> bool:
        ids = {id(parameter) for parameter in parameters}
        holders = (self._holders[each] for each in ids & self._holders.keys())
        if any(holder() is not None for holder in holders):
            return True
        return not ids.isdisjoint(id(own) for one in self._given for own in _parameters(one))


def _discard(found: list[weakref.ref[Optimizer]], gone: weakref.ref[Optimizer]) -> None:
    if gone in found:  # not that of a successor
        found.remove(gone)


def _nobody() -> None:
    """Leads to no optimizer."""


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
