"""Hooks on optimizers: whether a step was really taken, and the gradients' global norm."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from numwatch.stats import is_watched_dtype
from numwatch.stats.prepare import dense
from numwatch.taps.gate import Gate
from numwatch.taps.hooks import Hook
from numwatch.taps.tape import Tape


class OptimizerTaps:
    """Knows whether the weights were updated since `reset`.

    A scaler that found an inf does not call an ordinary optimizer, so its hooks do not fire. It
    does call a fused one, handing it `found_inf`; that flag goes to the tape.
    """

    def __init__(self, gate: Gate, tape: Tape) -> None:
        self.stepped = False
        self._gate, self._tape = gate, tape
        self._seen: set[int] = set()

    def reset(self) -> None:
        """Starts a step."""
        self.stepped = False
        self._seen.clear()

    def attach(self, optimizers: Iterable[Any]) -> list[RemovableHandle]:
        """Hooks the optimizers."""
        handles = []
        for optimizer in optimizers:
            if not hasattr(optimizer, "register_step_pre_hook"):
                continue  # Lightning takes wrappers without step hooks too
            handles.append(optimizer.register_step_pre_hook(_BeforeStep(self)))
            handles.append(optimizer.register_step_post_hook(_AfterStep(self)))
        return handles

    def see_gradients(self, optimizer: torch.optim.Optimizer, scale: Tensor | float = 1.0) -> None:
        """Adds the norm of an optimizer's gradients to the step's, once, on recorded steps.

        Args:
            optimizer: The optimizer.
            scale: What its gradients are still multiplied by.
        """
        if not self._gate.mode or id(optimizer) in self._seen:
            return
        self._seen.add(id(optimizer))
        norm = gradient_norm(optimizer)
        if norm is not None:
            self._tape.add("grad_norm_squared", (norm.double() / scale) ** 2)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes what a scaler hands a fused optimizer for the time of its step."""
        flag = getattr(optimizer, "found_inf", None)
        if isinstance(flag, Tensor):
            with self._gate.watching():
                self._tape.add("found_inf", flag)
                scale = getattr(optimizer, "grad_scale", None)
                self.see_gradients(optimizer, 1.0 if scale is None else scale)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the step; where nobody told of an earlier moment, the gradients are seen here."""
        self.stepped = True
        with self._gate.watching():
            self.see_gradients(optimizer)


class _BeforeStep(Hook):
    def __init__(self, taps: OptimizerTaps) -> None:
        self._taps = taps

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._taps.before_step(optimizer)


class _AfterStep(Hook):
    def __init__(self, taps: OptimizerTaps) -> None:
        self._taps = taps

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._taps.after_step(optimizer)


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Returns the L2 norm of an optimizer's gradients as they stand, or None without any.

    FP32 per parameter, so that FP16 squares do not overflow; a 0-d device tensor.
    """
    norms = [
        torch.linalg.vector_norm(
            dense(parameter.grad)[0], dtype=torch.promote_types(parameter.grad.dtype, torch.float32)
        )
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None and is_watched_dtype(parameter.grad.dtype)
    ]
    if not norms:
        return None
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return norm
