"""Modules that round their operands: torchao's float8 Linears, and those a plan is emulated in."""

from torch import nn

from numwatch.emulate import EmulatedLinear
from numwatch.emulate.convert import turn_plain as undo_emulation
from numwatch.taps.float8 import CastOf, float8_casts, is_float8_linear
from numwatch.taps.float8 import turn_plain as undo_float8


def operand_casts(module: nn.Module) -> dict[str, CastOf]:
    """Returns what repeats the casts of a module's operands, by role; see `float8_casts`."""
    if isinstance(module, EmulatedLinear):
        return dict(module.operand_casts())
    return float8_casts(module) or {}


def rounds_operands(module: nn.Module) -> bool:
    """Whether a module is one of them."""
    return isinstance(module, EmulatedLinear) or is_float8_linear(module)


def turn_plain(module: nn.Module) -> None:
    """Makes one of them a plain Linear on the same parameters, in place: a copy's only."""
    if isinstance(module, EmulatedLinear):
        undo_emulation(module)
    else:
        undo_float8(module)
