"""Hooks on modules: their inputs and outputs, and the gradients of both."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from numwatch.taps.collector import Collector
from numwatch.taps.fsdp import AtRest, weight_at_rest
from numwatch.taps.gate import Gate
from numwatch.taps.gradients import Gradient
from numwatch.taps.hooks import Hook, Removable, hook_gradient, in_backward, tensors_in
from numwatch.taps.own import own_of
from numwatch.taps.placement import (
    alias_of,
    is_dtensor,
    is_others_output,
    is_sharded,
)
from numwatch.taps.selection import PARAMETER_ROLES, Tap
from numwatch.taps.tracing import TracedModule
from numwatch.taps.weight_hooks import WholeWeight

_CPU = torch.device("cpu")
_NONE: AtRest = {}


def attach_modules(
    taps: Sequence[Tap],
    gate: Gate,
    collector: Collector,
    device: torch.device = _CPU,
    at_rest: AtRest = _NONE,
) -> list[Removable]:
    """Hooks every tapped module for the whole fit; the gate decides step by step what they do.

    Args:
        taps: The modules.
        gate: What their hooks ask.
        collector: What they bring tensors to.
        device: Where the model is.
        at_rest: The shards of weights that FSDP2 gathers.

    Returns:
        What to remove.
    """
    handles: list[Removable] = []
    for tap in taps:
        shard = weight_at_rest(tap, at_rest)
        if "grad_weight" in tap.slots and shard is not None and is_sharded(shard):
            whole = WholeWeight(tap, gate, collector)
            handles += [tap.module.register_forward_pre_hook(whole), whole]
        if tap.slots.keys() <= set(PARAMETER_ROLES):
            continue
        traced = TracedModule(tap, gate, collector, device)
        handles.append(traced.token)
        if tap.aliases_input:
            alias = _AliasInput(tap, gate, collector, traced)
            handles.append(tap.module.register_forward_pre_hook(alias))
        forward = _Forward(tap, gate, collector, traced)
        handles.append(tap.module.register_forward_hook(forward, with_kwargs=True))
    return handles


class _AliasInput(Hook):
    """Gives a GEMM its input through a view of its own.

    A tensor hook on the input itself would see the sum over all its consumers (q, k, v and the
    residual); on the view it sees this module's share, the result of its dgrad GEMM. A view adds
    no arithmetic, so the training stays bitwise the same.
    """

    def __init__(self, tap: Tap, gate: Gate, collector: Collector, traced: TracedModule) -> None:
        self._gate, self._traced = gate, traced
        self._gradient = Gradient(tap.slots["grad_input"], tap, gate, collector)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if is_compiling():
            return self._traced.before(args)
        return self._alias_first(args) if self._gate.mode and args else None

    def _alias_first(self, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0]
        if type(x) is not Tensor and not is_dtensor(x):
            return None
        if not x.requires_grad or not torch.is_grad_enabled():
            return None
        changed = None
        with self._gate.watching():
            alias = alias_of(x)
            if alias is not None:
                hook_gradient(alias, self._gradient)
                changed = (alias, *args[1:])
        return changed  # an error inside `watching` leaves it None


class _Forward(Hook):
    """Sees a module's inputs and outputs, and hooks the gradients of its outputs."""

    def __init__(self, tap: Tap, gate: Gate, collector: Collector, traced: TracedModule) -> None:
        self._tap, self._gate, self._collector, self._traced = tap, gate, collector, traced
        slots = tap.slots
        self._input, self._output = slots.get("input"), slots.get("output")
        grad_input = None if tap.aliases_input else slots.get("grad_input")
        self._grad_output, self._grad_input = (
            None if index is None else Gradient(index, tap, gate, collector)
            for index in (slots.get("grad_output"), grad_input)
        )
        self._own = own_of(tap.module)

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> object:
        if is_compiling():
            return self._traced.after(args, kwargs, output)
        if self._gate.mode and self._gate.open:
            self._see(args, kwargs, output)
        return None

    def _see(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        with self._gate.watching():
            if self._own is not None:
                args, kwargs, output = self._own(args, kwargs, output)
            # Activation checkpointing runs the forward again inside backward. Its numbers are
            # known already; only reentrant checkpoints need its gradient hooks.
            first = not in_backward()
            given = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            self._each(given, self._input if first else None, self._grad_input)
            own = bool(args) and type(args[0]) is Tensor
            if own or not is_others_output(self._tap.module, args, output):
                self._each(output, self._output if first else None, self._grad_output)

    def _each(self, value: object, forward: int | None, gradient: Gradient | None) -> None:
        if forward is None and gradient is None:
            return
        for tensor in (value,) if isinstance(value, Tensor) else tensors_in(value):
            if forward is not None:
                self._collector.see(forward, tensor, self._tap)
            if gradient is not None and tensor.requires_grad:
                handle = hook_gradient(_base_of(tensor) if self._tap.gemm else tensor, gradient)
                if handle is not None:  # a parameter: it would carry the hook for ever
                    self._gate.step_handles.append(handle)


def _base_of(output: Tensor) -> Tensor:
    """Returns the tensor a GEMM's output is a reshaped view of, or the output itself.

    `linear` views its 2-D product as the batch's shape. An in-place activation on a view rebases
    autograd's history onto the base, and a hook on the view would never fire.
    """
    base = output._base  # noqa: SLF001  # documented with torch's tensor views
    if base is None or base.numel() != output.numel() or not base.requires_grad:
        return output
    return base
