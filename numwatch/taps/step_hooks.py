"""Hooks on an optimizer's step, and torch's own on the steps of all optimizers."""

import weakref
from typing import Any, Protocol

import torch
from torch.compiler import is_compiling
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from numwatch.taps.gate import Gate
from numwatch.taps.hooks import Hook

Optimizer = torch.optim.Optimizer


class Follower(Protocol):
    """What is told of steps."""

    @property
    def gate(self) -> Gate:
        """What the work is charged to."""

    def is_stray(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer is to be followed although it was not given."""

    def see_step(self, optimizer: Optimizer) -> None:
        """Is called after a step of an optimizer that may be one, where nothing is recorded."""

    def before_step(self, optimizer: Optimizer, *, has_closure: bool = False) -> None:
        """Is called before a step; with a closure its backward is yet to come."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Is called after a step."""


def follow_steps(optimizer: Optimizer, follower: Follower) -> list[RemovableHandle]:
    """Hooks an optimizer."""
    return [
        optimizer.register_step_pre_hook(_BeforeStep(follower)),
        optimizer.register_step_post_hook(_AfterStep(follower)),
    ]


def follow_strays(follower: Follower) -> list[RemovableHandle]:
    """Hooks the steps of all optimizers for those that nobody has told of."""
    return [
        register_optimizer_step_pre_hook(_BeforeStep(follower, strays=True)),
        register_optimizer_step_post_hook(_AfterStep(follower, strays=True)),
    ]


class _StepHook(Hook):
    # Torch's list of hooks on all optimizers outlives any run: it must not keep one alive.
    def __init__(self, follower: Follower, *, strays: bool = False) -> None:
        self._follower, self._strays = weakref.ref(follower), strays

    def _follower_of(self, optimizer: Optimizer) -> Follower | None:
        follower = None if is_compiling() else self._follower()
        if follower is None or not self._strays:
            return follower
        return follower if follower.gate.mode and follower.is_stray(optimizer) else None


class _BeforeStep(_StepHook):
    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        follower = self._follower_of(optimizer)
        if follower is not None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            with follower.gate.watching(), follower.gate.hooks_stay():
                follower.before_step(optimizer, has_closure=closure is not None)


class _AfterStep(_StepHook):
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        follower = self._follower_of(optimizer)
        if follower is not None:
            with follower.gate.watching(), follower.gate.hooks_stay():
                follower.after_step(optimizer)
        elif self._strays and not is_compiling():
            idle = self._follower()
            if idle is not None and not idle.gate.mode:
                idle.see_step(optimizer)
