"""A module's hooks while torch.compile traces them: what they see becomes part of the graph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.taps.captured import is_capturing
from numwatch.taps.collector import Collector
from numwatch.taps.gate import Gate
from numwatch.taps.hooks import in_backward
from numwatch.taps.selection import Tap
from numwatch.taps.traced import Listener, Tokens, is_traceable, trace, trace_gradient

_FORWARD = ("input", "output")


class TracedModule:
    """One module in a traced graph.

    Nothing here may depend on the gate: the compiler would compile anew whenever it moves. What is
    traced is always called, and the listeners decide.

    Attributes:
        tokens: To be removed when the hooks are.
    """

    def __init__(self, tap: Tap, gate: Gate, collector: Collector) -> None:
        self.tokens = Tokens(tap.module)
        roles = [role for role in (*_FORWARD, "grad_output", "grad_input") if role in tap.slots]
        self._listeners = {role: _listener(role, tap, gate, collector) for role in roles}
        for role, listener in self._listeners.items():
            self.tokens.listen(role, listener)
        self._token = {role: self.tokens.of(role) for role in roles}
        self._aliases_input = tap.aliases_input
        self._of_attention = isinstance(tap.module, nn.MultiheadAttention)

    def before(self, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Returns the arguments to call the module with: the first one's gradient will be seen."""
        if not args or not is_traceable(args[0]) or not args[0].requires_grad:
            return None
        if not torch.is_grad_enabled():
            return None
        return (trace_gradient(args[0], self._token["grad_input"]), *args[1:])

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Returns the output to go on with, after it and the arguments were seen."""
        own = output
        if self._of_attention:
            args, kwargs, own = own_of_attention(args, kwargs, output)
        if "input" in self._token:
            for tensor in _tensors([*args, *kwargs.values()]):
                trace(tensor, self._token["input"])
        if "output" in self._token:
            for tensor in _tensors([own]):
                trace(tensor, self._token["output"])
        token = self._token.get("grad_output")
        if token is None or not torch.is_grad_enabled():
            return None
        if self._of_attention and isinstance(output, tuple):
            return (_with_gradient(output[0], token), *output[1:])
        return _with_gradient(output, token)


def own_of_attention(
    args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Returns what of an attention's call is its GEMMs'.

    Not the masks, whose -inf are meant, nor the attention weights.
    """
    own = {name: given for name, given in kwargs.items() if name in ("query", "key", "value")}
    return args[:3], own, output[0] if isinstance(output, tuple) else output


def _listener(role: str, tap: Tap, gate: Gate, collector: Collector) -> Listener:
    index, forward = tap.slots[role], role in _FORWARD

    def see(tensor: Tensor, autocast: str) -> None:
        if forward and in_backward():
            return  # a checkpoint's, run again
        if is_capturing(tensor):
            with gate.watching():
                collector.capture(index, tensor, tap, autocast)
        elif gate.open:
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


def _with_gradient(output: Any, token: int) -> Any:
    if is_traceable(output):
        return trace_gradient(output, token) if output.requires_grad else output
    if type(output) in (tuple, list):
        return type(output)(_with_gradient(one, token) for one in output)
    return output
