"""Hooks on modules: their inputs and outputs, and the gradients of both."""

import weakref
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from numwatch.taps.collector import Collector
from numwatch.taps.fsdp import AtRest, weight_at_rest
from numwatch.taps.gate import Gate
from numwatch.taps.hooks import Hook, Removable, hook_gradient, in_backward, tensors_in
from numwatch.taps.own import own_of
from numwatch.taps.placement import (
    alias_of,
    is_dtensor,
    is_others_output,
    is_sharded,
    weight_in_place,
)
from numwatch.taps.selection import PARAMETER_ROLES, Tap
from numwatch.taps.tracing import TracedModule

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
            whole = _WholeWeight(shard, tap, gate, collector)
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


def attach_weights(
    taps: Sequence[Tap],
    gate: Gate,
    collector: Collector,
    hooked: dict[int, RemovableHandle],
    at_rest: AtRest = _NONE,
    trained: AbstractSet[int] = frozenset(),
) -> None:
    """Hooks the weights that require a gradient and carry none of `hooked`, which it updates.

    So it does those of slots in `trained` that are frozen just now. Hooks on their modules would
    have compiled code made anew.

    A gradient is seen on its way into `.grad`: each micro-batch of a window adds its own. It is as
    the user's own hooks leave it, those that were there when the step began.
    """
    for tap in taps:
        index = tap.slots.get("grad_weight")
        weight = None if index is None else weight_at_rest(tap, at_rest)
        if index is None or weight is None or is_lazy(weight):
            continue
        if not (weight.requires_grad or (index in trained and _can_thaw(weight))):
            continue
        handle = hooked.get(index)
        if handle is not None:
            hooks: Any = handle.hooks_dict_ref()
            here = weight._backward_hooks  # noqa: SLF001  # as torch's own handles
            if here is not None and here is hooks and handle.id in here:
                here[handle.id] = here.pop(handle.id)  # last, as where it was just put on
                continue
            handle.remove()  # from a weight whose place another has taken
        hooked[index] = _hook_leaf(weight, _Gradient(index, tap, gate, collector))


def _hook_leaf(weight: Tensor, hook: Hook) -> RemovableHandle:
    """Hooks a weight, though it be frozen just now: torch keeps hooks that are there already."""
    frozen = not weight.requires_grad
    if frozen:
        weight.requires_grad = True
    try:
        handle: RemovableHandle = weight.register_hook(hook)
    finally:
        if frozen:
            weight.requires_grad = False
    return handle


def _can_thaw(weight: Tensor) -> bool:
    """Whether a frozen weight may require a gradient: one that was quantised in place can't."""
    known = type(weight) is nn.Parameter or is_dtensor(weight)
    return known and weight.is_leaf and weight.is_floating_point() and not weight.is_inference()


class _WholeWeight(Hook):
    """Sees the gradient of a weight that FSDP gathers for its module's forward.

    The parameter at rest is a shard of it, which autograd knows nothing of. A parallel plan alone
    gathers none: there the parameter itself is computed with, and has its hook already.
    """

    def __init__(self, at_rest: Tensor, tap: Tap, gate: Gate, collector: Collector) -> None:
        self._known, self._parameter = weakref.ref(at_rest), tap.parameter
        self._gradient = _Gradient(tap.slots["grad_weight"], tap, gate, collector)
        self._gate = gate
        self._handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        if is_compiling() or not self._gate.open or not torch.is_grad_enabled():
            return
        with self._gate.watching():
            weight = weight_in_place(module, self._parameter)
            if weight is not None and weight.requires_grad and weight is not self._known():
                self._handle = weight.register_hook(self._gradient)
                self._known = weakref.ref(weight)

    def remove(self) -> None:
        """Takes the hook off the weight, which FSDP2 keeps from step to step."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None


class _AliasInput(Hook):
    """Gives a GEMM its input through a view of its own.

    A tensor hook on the input itself would see the sum over all its consumers (q, k, v and the
    residual); on the view it sees this module's share, the result of its dgrad GEMM. A view adds
    no arithmetic, so the training stays bitwise the same.
    """

    def __init__(self, tap: Tap, gate: Gate, collector: Collector, traced: TracedModule) -> None:
        self._gate, self._traced = gate, traced
        self._gradient = _Gradient(tap.slots["grad_input"], tap, gate, collector)

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
            None if index is None else _Gradient(index, tap, gate, collector)
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

    def _each(self, value: object, forward: int | None, gradient: "_Gradient | None") -> None:
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


class _Gradient(Hook):
    """Sees a tensor's gradient when autograd has it, scaled by the loss scale as it is."""

    def __init__(self, index: int, tap: Tap, gate: Gate, collector: Collector) -> None:
        self._index, self._tap, self._gate, self._collector = index, tap, gate, collector

    def __call__(self, gradient: Tensor) -> None:
        if is_compiling():
            return  # of a backward that is compiled itself
        if self._gate.mode:
            with self._gate.watching():
                self._collector.see(self._index, gradient, self._tap)
