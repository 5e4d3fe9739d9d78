"""What a hook leaves in a graph that torch.compile traces: an operator it can't look into.

The hook's Python runs once, while the graph is made. What stays is a call of `numwatch::see`, whose
body is ordinary Python at every call: it hands the tensor to whoever listens to the module's token.
So cadence, pauses and the end of a watching recompile nothing, and a later watch of the same module
listens to what was compiled for an earlier one. A token is a tensor, known by its address: a number
would be compiled in, and blocks that share one graph would each need their own.

Compilers drop a call whose result nobody needs. Forward, every call claims to write to the anchor.
Backward can't: torch would refuse the anchor as changed since forward. There the call returns the
gradient of a ballast that went through forward with the tensor, always 0. Compilers also make one
call of two that are alike; that each takes an empty tensor of its own keeps them apart.
"""

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from numwatch.snapshot import ROLES
from numwatch.taps.hooks import autocast_on


class Listener(Protocol):
    """What a token's tensors are handed to."""

    def __call__(self, tensor: Tensor, autocast: str, *, grad: bool) -> None:
        """Sees a tensor.

        Args:
            tensor: What the compiled code has.
            autocast: Dtype of the autocast around the module, "" for none.
            grad: Whether gradients were enabled around it.
        """


# custom_op would be shorter; its calls take ten times as long.
_LIBRARY = torch.library.Library("numwatch", "DEF")
_LIBRARY.define(
    "see(Tensor x, Tensor(a!) anchor, Tensor token, int role, str autocast, bool grad) -> ()"
)
_LIBRARY.define("see_gradient(Tensor gradient, Tensor token, int role, Tensor own) -> Tensor")

_anchors: dict[torch.device, Tensor] = {}
_ballasts: dict[torch.device, Tensor] = {}
_listeners: weakref.WeakValueDictionary[tuple[int, int], Listener] = weakref.WeakValueDictionary()
_tokens: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()


def _see(x: Tensor, _anchor: Tensor, token: Tensor, role: int, autocast: str, grad: bool) -> None:
    listener = _listeners.get((token.data_ptr(), role))
    if listener is not None:
        listener(x, autocast, grad=grad)


def _see_nothing(*_args: object) -> None:
    """What the compiler runs to learn shapes."""


def _see_gradient(gradient: Tensor, token: Tensor, role: int, own: Tensor) -> Tensor:
    listener = _listeners.get((token.data_ptr(), role))
    if listener is not None:
        listener(gradient, "", grad=True)
    return _no_gradient(gradient, token, role, own)


def _no_gradient(gradient: Tensor, _token: Tensor, _role: int, _own: Tensor) -> Tensor:
    return gradient.new_zeros(1, dtype=torch.float32)


_LIBRARY.impl("see", _see, "CompositeExplicitAutograd")
_LIBRARY.impl("see_gradient", _see_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("numwatch::see", _see_nothing, lib=_LIBRARY)
torch.library.register_fake("numwatch::see_gradient", _no_gradient, lib=_LIBRARY)


class Token:
    """The token of a watched module, and who listens to it.

    A module keeps its tokens for life, since graphs hold them. A second watch at the same time gets
    another.

    Attributes:
        tensor: What the operator takes.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        known = _tokens.setdefault(module, [])
        free = [token for token in known if not _taken(token) and token.device == device]
        if not free:
            with torch.inference_mode(mode=False):
                free.append(torch.zeros(1, dtype=torch.uint8, device=device))
            _stay(free[0])
            known.append(free[0])
        self.tensor = free[0]

    def listen(self, role: str, listener: Listener) -> None:
        """Has a role's tensors handed to a listener, as long as somebody else keeps it alive."""
        _listeners[self.tensor.data_ptr(), ROLES.index(role)] = listener

    def remove(self) -> None:
        """Stops listening: as a handle does."""
        for role in range(len(ROLES)):
            _listeners.pop((self.tensor.data_ptr(), role), None)


def _taken(token: Tensor) -> bool:
    return any((token.data_ptr(), role) in _listeners for role in range(len(ROLES)))


def _stay(tensor: Tensor) -> None:
    """Tells CUDA graphs that an input will not move: else they copy it, or are left out."""
    if tensor.is_cuda:
        torch._dynamo.mark_static_address(tensor)  # noqa: SLF001


def anchor_on(device: torch.device) -> None:
    """Makes sure, before anything is traced, that tensors of a device can be seen."""
    if device in _anchors:
        return
    with torch.inference_mode(mode=False):
        _anchors[device] = torch.zeros(1, dtype=torch.uint8, device=device)
        _ballasts[device] = torch.zeros(1, device=device, requires_grad=True)
    _stay(_anchors[device])
    _stay(_ballasts[device])


def is_traceable(value: object) -> bool:
    """Whether a value met while tracing is a tensor that the operator takes."""
    return (
        (type(value) is Tensor or type(value) is nn.Parameter)
        and value.is_floating_point()
        and value.device in _anchors
        # What `vmap` hands around has no memory of its own. This way of asking can be traced.
        and not torch._C._functorch.is_batchedtensor(value)  # noqa: SLF001
    )


def trace(x: Tensor, token: Tensor, role: str) -> None:
    """Leaves a call in the graph that sees a tensor."""
    autocast = autocast_on(x.device.type)
    grad = torch.is_grad_enabled()
    anchor = _anchors[x.device]
    torch.ops.numwatch.see(x.detach(), anchor, token, ROLES.index(role), autocast, grad)


def trace_gradient(x: Tensor, token: Tensor, role: str) -> Tensor:
    """Returns the tensor to go on with, whose gradient will be seen."""
    ballast = _ballasts[x.device]
    seen: Tensor = _Identity.apply(x, ballast, token, ROLES.index(role))  # type: ignore[no-untyped-call]
    return seen


class _Identity(torch.autograd.Function):
    """Its backward sees the gradient."""

    @staticmethod
    def forward(x: Tensor, _ballast: Tensor, _token: Tensor, _role: int) -> Tensor:
        # A view that a Function returns can't be written to in place; compilers drop the copy.
        return x.clone()

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], _output: Tensor
    ) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.role = inputs[3]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (token,) = ctx.saved_tensors
        own = torch.empty(1, dtype=torch.uint8, device=gradient.device)
        seen = torch.ops.numwatch.see_gradient(gradient, token, ctx.role, own)
        return gradient, seen, None, None
