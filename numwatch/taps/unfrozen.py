"""Weights that come to require a gradient when the step has begun already."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from numwatch.taps.fsdp import AtRest, weight_at_rest
from numwatch.taps.gate import Gate
from numwatch.taps.hooks import Hook, takes_hooks
from numwatch.taps.selection import Tap


def await_gradients(
    taps: Sequence[Tap],
    gate: Gate,
    attach: Callable[[Tap], None],
    awaited: dict[int, RemovableHandle],
    at_rest: AtRest,
) -> None:
    """Looks again at the weights that are frozen or not made yet, before their module's forward.

    Args:
        taps: The modules.
        gate: What the hooks ask.
        attach: Hooks the weight of a tap, unless it is frozen still or hooked by now.
        awaited: The hooks there are by the slot of the gradient; more are added.
        at_rest: The shards of weights that FSDP2 gathers.
    """
    for tap in taps:
        index = tap.slots.get("grad_weight")
        if index is None or index in awaited:
            continue
        weight = weight_at_rest(tap, at_rest)
        frozen = weight is not None and (is_lazy(weight) or not weight.requires_grad)
        if frozen and takes_hooks(tap.module):
            look = _LookAgain(tap, gate, attach)
            awaited[index] = tap.module.register_forward_pre_hook(look)


def trained_of(taps: Sequence[Tap], at_rest: AtRest) -> set[int]:
    """Returns the slots of gradients whose weight requires one just now."""
    weights = ((tap.slots.get("grad_weight"), weight_at_rest(tap, at_rest)) for tap in taps)
    known = ((i, w) for i, w in weights if i is not None and w is not None)
    return {i for i, w in known if w.requires_grad and not is_lazy(w)}


class _LookAgain(Hook):
    def __init__(self, tap: Tap, gate: Gate, attach: Callable[[Tap], None]) -> None:
        self._tap, self._gate, self._attach = tap, gate, attach

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        if not is_compiling() and self._gate.open:
            with self._gate.watching():
                self._attach(self._tap)
