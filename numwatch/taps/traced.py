"""What a hook leaves in a graph that torch.compile traces: an operator it can't look into.

The hook's Python runs once, while the graph is made. What stays is a call of
`numwatch::see(tensor, anchor, token, autocast)`, whose body is ordinary Python at every call: it
hands the tensor to whoever listens to the token. So cadence, pauses and the end of a watching
recompile nothing, and a later watch of the same module listens to what was compiled for an earlier
one.

Compilers drop a call whose result nobody needs. Forward, every call claims to write to the anchor.
Backward can't: torch would refuse the anchor as changed since forward. There the call returns the
gradient of a ballast that went through forward with the tensor, always 0.
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.snapshot import ROLES

Listener = Callable[[Tensor, str], None]
"""Called with a tensor, and the dtype of the autocast around its module ("" for none)."""

_LIBRARY = torch.library.Library(
    "numwatch", "DEF"
)  # not custom_op: its calls take ten times as long
_LIBRARY.define("see(Tensor x, Tensor(a!) anchor, int token, str autocast) -> ()")
_LIBRARY.define("see_gradient(Tensor gradient, int token) -> Tensor")

_anchors: dict[torch.device, Tensor] = {}
_ballasts: dict[torch.device, Tensor] = {}
_listeners: weakref.WeakValueDictionary[int, Listener] = weakref.WeakValueDictionary()
_tokens: weakref.WeakKeyDictionary[nn.Module, list[int]] = weakref.WeakKeyDictionary()
_new_tokens = itertools.count(0, len(ROLES))


def _see(x: Tensor, _anchor: Tensor, token: int, autocast: str) -> None:
    listener = _listeners.get(token)
    if listener is not None:
        listener(x, autocast)


def _see_nothing(_x: Tensor, _anchor: Tensor, _token: int, _autocast: str) -> None:
    """What the compiler runs to learn shapes."""


def _see_gradient(gradient: Tensor, token: int) -> Tensor:
    listener = _listeners.get(token)
    if listener is not None:
        listener(gradient, "")
    return _no_gradient(gradient, token)


def _no_gradient(gradient: Tensor, _token: int) -> Tensor:
    return gradient.new_zeros(1, dtype=torch.float32)


_LIBRARY.impl("see", _see, "CompositeExplicitAutograd")
_LIBRARY.impl("see_gradient", _see_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("numwatch::see", _see_nothing, lib=_LIBRARY)
torch.library.register_fake("numwatch::see_gradient", _no_gradient, lib=_LIBRARY)


class Tokens:
    """The tokens of one watched module, one a role, and who listens to them.

    A module keeps its tokens for life, since graphs hold them. A second watch at the same time gets
    others.
    """

    def __init__(self, module: nn.Module) -> None:
        known = _tokens.setdefault(module, [])
        free = [first for first in known if not _taken(first)]
        if not free:
            free.append(next(_new_tokens))
            known.append(free[0])
        self._first = free[0]

    def of(self, role: str) -> int:
        """Returns a role's token."""
        return self._first + ROLES.index(role)

    def listen(self, role: str, listener: Listener) -> None:
        """Has a role's tensors handed to a listener, as long as somebody else keeps it alive."""
        _listeners[self.of(role)] = listener

    def remove(self) -> None:
        """Stops listening: as a handle does."""
        for token in range(self._first, self._first + len(ROLES)):
            _listeners.pop(token, None)


def _taken(first: int) -> bool:
    return any(token in _listeners for token in range(first, first + len(ROLES)))


def anchor_on(device: torch.device) -> None:
    """Makes sure, before anything is traced, that tensors of a device can be seen."""
    if device in _anchors:
        return
    with torch.inference_mode(mode=False):
        _anchors[device] = torch.zeros(1, dtype=torch.uint8, device=device)
        _ballasts[device] = torch.zeros(1, device=device, requires_grad=True)
    if device.type == "cuda":
        # CUDA graphs are left out where an input is written to that may move.
        for tensor in (_anchors[device], _ballasts[device]):
            torch._dynamo.mark_static_address(tensor)  # noqa: SLF001


def is_traceable(value: object) -> bool:
    """Whether a value met while tracing is a tensor that the operator takes."""
    return (
        (type(value) is Tensor or type(value) is nn.Parameter)
        and value.is_floating_point()
        and value.device in _anchors
        # What `vmap` hands around has no memory of its own. This way of asking can be traced.
        and not torch._C._functorch.is_batchedtensor(value)  # noqa: SLF001
    )


def trace(x: Tensor, token: int) -> None:
    """Leaves a call in the graph that sees a tensor."""
    kind = x.device.type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
    torch.ops.numwatch.see(x.detach(), _anchors[x.device], token, autocast)


def trace_gradient(x: Tensor, token: int) -> Tensor:
    """Returns the tensor to go on with, whose gradient will be seen."""
    seen: Tensor = _Pass.apply(x, _ballasts[x.device], token)  # type: ignore[no-untyped-call]
    return seen


class _Pass(torch.autograd.Function):
    """The identity, whose backward sees the gradient."""

    @staticmethod
    def forward(x: Tensor, _ballast: Tensor, _token: int) -> Tensor:
        # A view that a Function returns can't be written to in place; compilers drop the copy.
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], _output: Tensor) -> None:
        ctx.token = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, torch.ops.numwatch.see_gradient(gradient, ctx.token), None
