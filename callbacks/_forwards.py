"""A model's forward under transformers' Trainer, which tells callbacks of no batch and no loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from numwatch.micro_batch import Around, MicroBatch
from numwatch.session import Session
from numwatch.shadow import ShadowStep
from numwatch.taps.fp32 import copy_exactly, copy_in_fp32
from numwatch.taps.hooks import Hook, in_backward

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Forwards:
    """Tells a session of each micro-batch, as the model is called with it, and sums up its loss.

    Args:
        model: The model.
        session: What is told.
        parts: Micro-batches of a window, where it is not cut short.
        around: The autocast that accelerate has put around the model's forward, if any.
    """

    def __init__(
        self, model: nn.Module, session: Session, parts: int, around: Around | None = None
    ) -> None:
        self._model, self._session, self._parts, self._around = model, session, parts, around
        self._handles: list[RemovableHandle] = []
        self._loss: Tensor | float = 0.0
        self._losses = 0
        self._whole = False
        self._epoch = self._batch = 0
        self._fresh = self._first = False

    def attach(self) -> None:
        """Hooks the model."""
        if not self._handles:
            self._handles = [
                self._model.register_forward_pre_hook(_Before(self), with_kwargs=True),
                self._model.register_forward_hook(_After(self), with_kwargs=True),
            ]

    def detach(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin_step(self, *, epoch: int, batch: int) -> None:
        """Begins a step with its first micro-batch."""
        self._loss, self._losses, self._whole = 0.0, 0, False
        self._epoch, self._batch = epoch, batch
        self._fresh = self._first = True

    def next_batch(self, batch: int) -> None:
        """Begins another micro-batch."""
        self._batch, self._fresh, self._first = batch, True, False

    def take_loss(self) -> Tensor | float | None:
        """Returns the step's loss, a mean over its tokens or micro-batches; None without any."""
        if not self._losses:
            return None
        return self._loss if self._whole else self._loss / self._losses

    def see_call(self, arguments: Arguments) -> None:
        """Takes note of the first call in a micro-batch."""
        if not self._fresh or not self._is_trained():
            return
        self._fresh = False
        if self._first:
            self._session.shadow(partial(self._step, arguments, copy_in_fp32, plain=True))
        self._session.begin_batch(partial(self._micro_batch, arguments))

    def see_output(self, kwargs: Mapping[str, Any], output: Any) -> None:
        """Adds what the model returned for a loss."""
        loss = _loss_in(output)
        if loss is None or not loss.requires_grad or not self._is_trained():
            return
        self._loss = self._loss + loss.detach()
        self._losses += 1
        self._whole = kwargs.get("num_items_in_batch") is not None

    def _is_trained(self) -> bool:
        return self._model.training and torch.is_grad_enabled() and not in_backward()

    def _micro_batch(self, arguments: Arguments) -> MicroBatch:
        args, kwargs = arguments
        return MicroBatch(
            step_of=partial(self._step, arguments, copy_exactly),
            batch=(*args, kwargs) if args else kwargs,
            index=self._batch,
            epoch=self._epoch,
            parts=self._parts,
            around=self._around,
        )

    def _step(
        self, arguments: Arguments, copy_of: Callable[[Any], Any], *, plain: bool = False
    ) -> ShadowStep:
        return ShadowStep(partial(self._loss_of, arguments=arguments, copy_of=copy_of, plain=plain))

    def _loss_of(
        self,
        copied: nn.Module,
        *,
        arguments: Arguments,
        copy_of: Callable[[Any], Any],
        plain: bool,
    ) -> Tensor | None:
        own = vars(copied).get("_original_forward")
        if plain and own is not None:
            vars(copied)["forward"] = own  # without the autocast that accelerate has put around it
        args, kwargs = copy_of(arguments)
        loss = _loss_in(copied(*args, **kwargs))
        whole = kwargs.get("num_items_in_batch") is not None
        return loss if loss is None or whole else loss / self._parts


class _Before(Hook):
    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_compiling():
            self._forwards.see_call((args, kwargs))


class _After(Hook):
    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    def __call__(
        self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        if not is_compiling():
            self._forwards.see_output(kwargs, output)


def _loss_in(output: Any) -> Tensor | None:
    """Returns the loss in a model's output, found as the Trainer finds it."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, tuple) and output else None
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
