"""Hooks on an optimizer's step, and torch's own on the steps of all optimizers."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.compiler import is_compiling
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from numwatch.taps.gate import Gate
from numwatch.taps.hooks import Hook, Removable

Optimizer = torch.optim.Optimizer


class Follower(Protocol):
    """What is told of steps."""

    @property
    def gate(self) -> Gate:
        """What the work is charged to."""

    def is_stray(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer is to be followed although it was not given."""

    def see_step(self, optimizer: Optimizer, *, stray: bool) -> None:
        """Is called after a step where nothing is recorded; with `stray` of whatever optimizer."""

    def before_step(self, optimizer: Optimizer, *, has_closure: bool = False) -> None:
        """Is called before a step; with a closure its backward is yet to come."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Is called after a step."""


def tells_of_steps(optimizer: Any) -> bool:
    """Whether an optimizer takes hooks on its steps; Lightning takes wrappers without too."""
    return hasattr(optimizer, "register_step_pre_hook")


def follow_steps(optimizer: Optimizer, follower: Follower) -> list[Removable]:
    """Hooks an optimizer."""
    return [
        optimizer.register_step_pre_hook(_BeforeStep(follower)),
        optimizer.register_step_post_hook(_AfterStep(follower)),
    ]


def follow_strays(follower: Follower) -> list[Removable]:
    """Hooks the steps of all optimizers for those that nobody has told of."""
    places: list[Removable] = [
        _before_any.add(_BeforeStep(follower, strays=True)),
        _after_any.add(_AfterStep(follower, strays=True)),
    ]
    for place in places:  # of a watch that nobody ends
        weakref.finalize(follower, place.remove).atexit = False
    return places


class _StepHook(Hook):
    # Torch's list of hooks on all optimizers outlives any run: it must not keep one alive.
    def __init__(self, follower: Follower, *, strays: bool = False) -> None:
        self._follower, self._strays = weakref.ref(follower), strays

    def _awake(self) -> Follower | None:
        return None if is_compiling() else self._follower()

    def _concerns(self, follower: Follower, optimizer: Optimizer) -> bool:
        return not self._strays or follower.is_stray(optimizer)


class _BeforeStep(_StepHook):
    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        follower = self._awake()
        if follower is None:
            return
        told = follower.gate.mode or hasattr(optimizer, "found_inf")  # noted on every step
        if told and self._concerns(follower, optimizer):
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            with follower.gate.hooks_stay(), follower.gate.watching():
                follower.before_step(optimizer, has_closure=closure is not None)


class _AfterStep(_StepHook):
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        follower = self._awake()
        if follower is None:
            return
        if not follower.gate.mode:
            follower.see_step(optimizer, stray=self._strays)
        elif self._concerns(follower, optimizer):
            with follower.gate.hooks_stay(), follower.gate.watching():
                follower.after_step(optimizer)


_AnyHook = _BeforeStep | _AfterStep


class _OnAnyStep:
    """One of torch's hooks on the steps of all optimizers, for all followers.

    Torch goes through its list of them in whatever thread an optimizer steps, and fails where one
    comes or goes meanwhile unless it is the last.
    """

    def __init__(self, register: Callable[[Any], RemovableHandle]) -> None:
        self._register, self._lock = register, threading.RLock()  # a finalizer comes at any time
        self._hooks: tuple[_AnyHook, ...] = ()
        self._handle: RemovableHandle | None = None

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_compiling():
            for hook in self._hooks:
                hook(optimizer, args, kwargs)

    def add(self, hook: _AnyHook) -> "_Place":
        """Calls a hook from now on."""
        with self._lock:
            self._hooks = (*self._hooks, hook)
            if self._handle is None:
                self._handle = self._register(self)
        return _Place(self, hook)

    def drop(self, hook: _AnyHook) -> None:
        """Calls it no more; after the last one nothing is left with torch."""
        with self._lock:
            self._hooks = tuple(one for one in self._hooks if one is not hook)
            if not self._hooks and self._handle is not None:
                self._handle.remove()
                self._handle = None


class _Place:
    def __init__(self, of: _OnAnyStep, hook: _AnyHook) -> None:
        self._of, self._hook = of, hook

    def remove(self) -> None:
        self._of.drop(self._hook)


_before_any = _OnAnyStep(register_optimizer_step_pre_hook)
_after_any = _OnAnyStep(register_optimizer_step_post_hook)
