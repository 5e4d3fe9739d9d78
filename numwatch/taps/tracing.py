"""A module's hooks while torch.compile traces them: what they see becomes part of the graph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.taps.captured import is_capturing
from numwatch.taps.collector import Collector
from numwatch.taps.gate import Gate
from numwatch.taps.hooks import in_backward
from numwatch.taps.own import own_of
from numwatch.taps.selection import PARAMETER_ROLES, Tap, is_norm_or_embedding
from numwatch.taps.traced import Listener, Token, is_traceable, trace, trace_gradient

_FORWARD = ("input", "output")
_NARROW = (torch.bfloat16, torch.float16)


class TracedModule:
    """One module in a traced graph.

    Nothing here may depend on the gate: the compiler would compile anew whenever it moves. What is
    traced is always called, and the listeners decide.

    Attributes:
        token: To be removed when the hooks are.
    """

    def __init__(self, tap: Tap, gate: Gate, collector: Collector, device: torch.device) -> None:
        self.token = Token(tap.module, device)
        self._roles = frozenset(tap.slots) - set(PARAMETER_ROLES)
        # What a compiler fuses with a norm takes its result unrounded; seeing it would round it.
        self._rounds_nothing = tap.gemm or not is_norm_or_embedding(tap.module)
        self._listeners = {role: _listener(role, tap, gate, collector) for role in self._roles}
        for role, listener in self._listeners.items():
            self.token.listen(role, listener)
        self._of_attention = isinstance(tap.module, nn.MultiheadAttention)
        self._own = own_of(tap.module)

    def before(self, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Returns the arguments to call the module with: the first one's gradient will be seen."""
        if not args or not is_traceable(args[0]) or not args[0].requires_grad:
            return None
        if not torch.is_grad_enabled():
            return None
        return (trace_gradient(args[0], self.token.tensor, "grad_input"), *args[1:])

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Returns the output to go on with, after it and the arguments were seen."""
        own = output
        if self._own is not None:
            args, kwargs, own = self._own(args, kwargs, output)
        if "input" in self._roles:
            for tensor in _tensors([*args, *kwargs.values()]):
                trace(tensor, self.token.tensor, "input")
        if "output" in self._roles:
            for tensor in _tensors([own]):
                if self._rounds_nothing or tensor.dtype not in _NARROW:
                    trace(tensor, self.token.tensor, "output")
        if "grad_output" not in self._roles or not torch.is_grad_enabled():
            return None
        if self._of_attention and isinstance(output, tuple):
            return (self._with_gradient(output[0]), *output[1:])
        return self._with_gradient(output)

    def _with_gradient(self, output: Any) -> Any:
        if is_traceable(output):
            if not output.requires_grad:
                return output
            return trace_gradient(output, self.token.tensor, "grad_output")
        if type(output) in (tuple, list):
            return type(output)(self._with_gradient(one) for one in output)
        return output


def _listener(role: str, tap: Tap, gate: Gate, collector: Collector) -> Listener:
    index, forward = tap.slots[role], role in _FORWARD

    def see(tensor: Tensor, autocast: str, *, grad: bool) -> None:
        # Inside compiled code gradients are off: `grad` is what was in force around it.
        if forward and (in_backward() or not (grad or gate.in_training)):
            return  # a checkpoint's, run again; a validation in between
        if is_capturing(tensor):
            with gate.watching():
                collector.capture(index, tensor, tap, autocast)
        elif gate.mode:
            with gate.watching():
                collector.see_compiled(index, tensor, tap, autocast)

    return see


def _tensors(values: list[Any]) -> list[Tensor]:
    """The distinct tensors in nested tuples, lists and mappings, in a way that can be traced."""
    found: list[Tensor] = []
    for value in values:
        if is_traceable(value):
            inner = [value]
        elif isinstance(value, Mapping):
            inner = _tensors(list(value.values()))
        elif isinstance(value, (tuple, list)):
            inner = _tensors(list(value))
        else:
            continue
        found += [one for one in inner if not any(one is other for other in found)]
    return found
