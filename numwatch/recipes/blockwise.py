"""Recipes that scale parts of a tensor, each from its own amax: rows, blocks, two levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from numwatch.errors import NumwatchError
from numwatch.formats import ScaleRule


@dataclass(frozen=True)
class RowScaling:
    """One scale for each row along the dimension a GEMM reduces over, by `CurrentScaling`'s rule.

    Attributes:
        power_of_two: Round the scales down to powers of two, as torchao's `rowwise` does.
    """

    name: ClassVar[str] = "rowwise"
    power_of_two: bool = False


@dataclass(frozen=True)
class BlockScaling:
    """Block FP8, 1x128 or 128x128 by the format: the largest power of two that clips nothing.

    Source: Transformer Engine's `Float8BlockScaling`; DeepSeek-V3, arXiv:2412.19437.
    """

    name: ClassVar[str] = "block"


@dataclass(frozen=True)
class MXScaling:
    """An E8M0 scale for each block of 32.

    Attributes:
        rule: How its exponent is chosen, see `numwatch.formats.mx_scale_exponent`. Transformer
            Engine's MXFP8 recipe takes `rceil`, the OCP specification `floor`.
    """

    name: ClassVar[str] = "mx"
    rule: ScaleRule = "floor"

    def __post_init__(self) -> None:
        """Refuses an unknown rule."""
        if self.rule not in get_args(ScaleRule):
            raise NumwatchError(
                f"an MX rule is one of {', '.join(get_args(ScaleRule))}; got {self.rule!r}"
            )


SQUARE = (16, 16)
"""Blocks of NVFP4 whose transpose rounds alike."""


@dataclass(frozen=True)
class NVFP4Scaling:
    """An FP32 scale for the tensor, an E4M3 scale for each block of 16 below it.

    Attributes:
        square: Blocks of 16x16, so that a weight and its transpose round alike.
        hadamard: Multiply by a random Hadamard matrix of 16x16 before rounding where the operand
            enters the weight's gradient; both operands of that GEMM do so, which cancels.

    Source: arXiv:2509.25149, sections 3 and 4.
    """

    name: ClassVar[str] = "nvfp4"
    square: bool = False
    hadamard: bool = False
