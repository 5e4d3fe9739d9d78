"""Training with every planned operand of every GEMM rounded through its format and recipe."""

from numwatch.emulate.convert import Emulation, emulate
from numwatch.emulate.linear import EmulatedLinear

__all__ = ["EmulatedLinear", "Emulation", "emulate"]
