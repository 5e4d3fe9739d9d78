"""A look before each step of optimizers whose turns nobody announces."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from numwatch.taps.hooks import Hook, Removable, remove_all
from numwatch.taps.step_hooks import tells_of_steps

Optimizer = torch.optim.Optimizer


class StepChecks:
    """Calls `check` with an optimizer that is about to step."""

    def __init__(self, check: Callable[[Optimizer], None]) -> None:
        self._hook = _BeforeStep(check)
        self._followed: list[Optimizer] = []
        self._handles: list[Removable] = []

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Looks before the steps of these from now on, and of no others."""
        if [*map(id, optimizers)] == [*map(id, self._followed)]:
            return
        self.detach()
        self._followed = list(optimizers)
        self._handles = [
            optimizer.register_step_pre_hook(self._hook)
            for optimizer in optimizers
            if tells_of_steps(optimizer)
        ]

    def detach(self) -> None:
        """Looks no more."""
        remove_all(self._handles)
        self._followed = []


class _BeforeStep(Hook):
    def __init__(self, check: Callable[[Optimizer], None]) -> None:
        self._check = check

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        if not is_compiling():
            self._check(optimizer)
