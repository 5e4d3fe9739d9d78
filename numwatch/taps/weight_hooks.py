"""Hooks on weights, which see the gradients that go into `.grad`."""

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
from numwatch.taps.gradients import Gradient
from numwatch.taps.hooks import Hook, in_backward
from numwatch.taps.placement import is_dtensor, weight_in_place
from numwatch.taps.selection import Tap

_NONE: AtRest = {}


class LeafHook:
    """A hook that can be put on a weight again and again, and on what takes its place."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._handle: RemovableHandle | None = None
        self._memory: int | None = None
        self._alone = False

    def put_on(self, weight: Tensor) -> None:
        """Puts it on a weight, behind all other hooks there."""
        memory, handle = weight._cdata, self._handle  # noqa: SLF001  # what torch has of it in C++
        hooks: Any = weight._backward_hooks  # noqa: SLF001  # as torch's own handles
        if hooks and handle and memory == self._memory and handle.id in hooks:
            hooks[handle.id] = hooks.pop(handle.id)
            return
        self.remove(weight)
        self._alone = weight._backward_hooks is None  # noqa: SLF001  # as above
        self._handle, self._memory = _hook_leaf(weight, self._hook), memory

    def remove(self, weight: Tensor | None = None) -> None:
        """Takes it off.

        Args:
            weight: Where it is, as far as is known. `swap_tensors` cuts the dict of a weight's
                hooks off from autograd, and all that come into it later: none of ours may stay.
        """
        handle, self._handle = self._handle, None
        if handle is None:
            return
        hooks: Any = None if weight is None else weight._backward_hooks  # noqa: SLF001  # as above
        ours = self._alone and hooks is not None and handle.id in hooks
        handle.remove()
        if ours and weight is not None and not in_backward():  # which goes through them just now
            weight._backward_hooks = hooks or None  # noqa: SLF001  # which tells autograd of it


def attach_weights(
    taps: Sequence[Tap],
    gate: Gate,
    collector: Collector,
    hooked: dict[int, LeafHook],
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
        if index not in hooked:
            hooked[index] = LeafHook(Gradient(index, tap, gate, collector))
        hooked[index].put_on(weight)


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


class WholeWeight(Hook):
    """Sees the gradient of a weight that FSDP gathers for its module's forward.

    The parameter at rest is a shard of it, which autograd knows nothing of. A parallel plan alone
    gathers none: there the parameter itself is computed with, and has its hook already.
    """

    def __init__(self, tap: Tap, gate: Gate, collector: Collector) -> None:
        self._parameter = tap.parameter
        self._gradient = Gradient(tap.slots["grad_weight"], tap, gate, collector)
        self._gate = gate
        self._handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Looks at what stands as the weight of a module that is about to compute."""
        if is_compiling() or not self._gate.open or not torch.is_grad_enabled():
            return
        with self._gate.watching():
            weight = weight_in_place(module, self._parameter)
            if weight is not None and weight.requires_grad and not self._gradient.is_on(weight):
                self._handle = weight.register_hook(self._gradient)

    def remove(self) -> None:
        """Takes the hook off the weight, which FSDP2 keeps from step to step."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
