"""Where a parameter is at home, by which it is known again: a weak reference may get in the way.

`torch.utils.swap_tensors`, by which a module's `to` converts DTensors, refuses a tensor with one.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from numwatch.taps.fsdp import shards_with_owners


@dataclass(frozen=True, eq=False)
class Home:
    """A parameter's place in what keeps it: a module, FSDP2's account of it, or an optimizer.

    Attributes:
        owner: Leads to what keeps it, as long as that lives.
        look: Returns what is at the place now.
    """

    owner: weakref.ref[Any]
    look: Callable[[Any], object]

    def holds(self, parameter: Tensor) -> bool:
        """Whether the parameter is there; another may be, with an id used again."""
        owner = self.owner()
        return owner is not None and self.look(owner) is parameter


def homes_in(model: nn.Module) -> Iterator[tuple[str, Tensor, Home]]:
    """Yields the parameters of a model with their names and homes, FSDP2's shards first.

    One that is in several comes once for each, and last by what the model itself calls it: a class
    may name parameters that no module of it has.
    """
    for name, shard, owner in shards_with_owners(model):
        yield name, shard, Home(weakref.ref(owner), lambda one: one.sharded_param)
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001  # as below
            if parameter is not None:
                yield f"{path}.{name}".removeprefix("."), parameter, _in_module(module, name)
    for name, parameter in model.named_parameters():
        yield name, parameter, _named_by(model, name)


def home_in_optimizer(optimizer: Optimizer, group: int, index: int) -> Home:
    """Returns the home of what the model does not have, in a group of an optimizer."""

    def look(owner: Optimizer) -> object:
        groups = owner.param_groups
        parameters = groups[group]["params"] if group < len(groups) else ()
        return parameters[index] if index < len(parameters) else None

    return Home(weakref.ref(optimizer), look)


def _in_module(module: nn.Module, name: str) -> Home:
    def look(owner: nn.Module) -> object:
        parameters = owner._parameters  # noqa: SLF001  # `getattr` may run the module's own code
        return parameters[name] if name in parameters else None  # noqa: SIM401  # a script's have no `get`

    return Home(weakref.ref(module), look)


def _named_by(model: nn.Module, name: str) -> Home:
    return Home(weakref.ref(model), lambda owner: dict(owner.named_parameters()).get(name))
