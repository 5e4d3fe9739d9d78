"""Optimizers that step in the place of one that was given."""

import weakref
from itertools import chain

from torch.utils.weak import WeakIdKeyDictionary

from numwatch.taps.parameters import Parameters
from numwatch.taps.strays import Optimizer, Strays, parameters_of

_NOT_SEEN = (
    "updates, state and gradient norm in up to two first steps of {new}, which took the place of "
    "{old}; the first may read as skipped"
)


class Successors:
    """Finds who has taken the place of a given optimizer, and who was only left out."""

    def __init__(self, strays: Strays, parameters: Parameters) -> None:
        """Takes what knows the given optimizers, and the model's parameters."""
        self._strays, self._parameters = strays, parameters
        self._owners = {id(one) for one in strays.given if parameters.own_any(parameters_of(one))}
        self._passed: dict[int, weakref.ref[Optimizer]] = {}
        self._former: dict[int, weakref.ref[Optimizer]] = {}
        self._beside: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def reset(self) -> None:
        """Starts a step."""
        self._strays.stepped = False
        self._passed.clear()

    def pass_by(self, optimizer: Optimizer) -> None:
        """Takes note of a step by one that was not given."""
        if all(one is not optimizer for one in self._strays.given):
            self._passed[id(optimizer)] = weakref.ref(optimizer)

    def find(self, given: Optimizer, *, missed: bool) -> Optimizer | None:
        """Returns who has stepped since `reset` in the place of a given optimizer.

        One that ever stepped beside it is its inner or outer part, not its successor.

        Args:
            given: The optimizer.
            missed: Whether it has not stepped itself. If it has, the place may still be another's:
                one that was only left out, by a scaler say, while its outer part stepped.
        """
        passing = [ref() for ref in tuple(self._passed.values())]  # other threads' step meanwhile
        passed = [one for one in passing if one is not None and one not in self._beside]
        held = {id(parameter) for parameter in parameters_of(given)} if passed else set()
        sharing = [one for one in passed if not held.isdisjoint(map(id, parameters_of(one)))]
        if missed:
            strays = filter(self._strays.known, passed if passed and self._is_over(given) else ())
            return next(chain(sharing, strays), None)
        former = self._former.get(id(given), _nobody)()
        back = next((one for one in sharing if one is former), None)
        for one in sharing if back is None else [given]:
            self._beside[one] = True
        return back

    def replace(self, given: Optimizer, successor: Optimizer) -> str:
        """Lets go of a given optimizer for the one that was found; returns what was not seen."""
        if self._former.pop(id(given), _nobody)() is not successor:
            self._former[id(successor)] = weakref.ref(given)
        self._owners = self._owners - {id(given)} | {id(successor)}
        self._passed.pop(id(successor), None)
        self._strays.replace(given, successor)
        self._parameters.follow(given, successor)
        return _NOT_SEEN.format(new=type(successor).__name__, old=type(given).__name__)

    def _is_over(self, given: Optimizer) -> bool:
        """Whether the model has let go of all parameters that an optimizer had of it."""
        return id(given) in self._owners and not self._parameters.own_any(parameters_of(given))


def _nobody() -> None:
    """Leads to no optimizer."""
