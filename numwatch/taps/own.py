"""What of a module's call are operands of its own products, and what comes along."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from numwatch.taps.selection import stacks_of

Call = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Arguments by place and by name, and the output."""
OwnOf = Callable[[tuple[Any, ...], dict[str, Any], Any], Call]


def own_of(module: nn.Module) -> OwnOf | None:
    """Returns what takes a call of the module apart; None where all of a call is its own."""
    if isinstance(module, nn.MultiheadAttention):
        return own_of_attention
    stacks = stacks_of(module)
    own = dict(module.named_parameters(recurse=False))
    widths = {width for name in stacks for width in own[name].shape[1:]}
    return None if not stacks else lambda *call: _own_of_experts(widths, *call)


def own_of_attention(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    """Returns what of an attention's call is its GEMMs'.

    Not the masks, whose -inf are meant, nor the attention weights.
    """
    own = {name: given for name, given in kwargs.items() if name in ("query", "key", "value")}
    return args[:3], own, output[0] if isinstance(output, tuple) else output


def _own_of_experts(
    widths: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Call:
    """Returns the tokens that experts are given and give, not what a router gave or gives each."""

    def is_own(given: object) -> bool:
        return isinstance(given, Tensor) and given.dim() > 0 and given.shape[-1] in widths

    places = tuple(given for given in args if is_own(given))
    names = {name: given for name, given in kwargs.items() if is_own(given)}
    given = (places, names) if places or names else (args, kwargs)
    if isinstance(output, tuple):
        output = tuple(each for each in output if is_own(each)) or output
    return *given, output
