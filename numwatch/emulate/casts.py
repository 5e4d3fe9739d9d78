"""What rounding one operand of a GEMM does: pure functions of the operand, its scale and a draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from numwatch.formats import BlockFormat, Format, Rounding
from numwatch.formats.fp32_blocks import BlockRounded, round_blocks_fp32
from numwatch.formats.fp32_rounding import round_fp32
from numwatch.plan.types import Operand
from numwatch.recipes.blockwise import (
    SQUARE,
    BlockScaling,
    MXScaling,
    NVFP4Scaling,
    RowScaling,
)
from numwatch.recipes.scaling import CurrentScaling, TensorScaling

Draw = torch.Generator | None

# Scales are FP32 roundings of max / amax, so amax itself may land that much above max; the clamp
# takes off no more.
_SCALE_ROUNDING = 2.0**-22


@dataclass(frozen=True)
class Counts:
    """What a cast did to an operand's elements.

    Attributes:
        scale: FP32 [], or NaN where there is more than one.
        flushed: int64 [], the non-zero elements that became zero.
        saturated: int64 [], the elements above the format's largest value once scaled, by more than
            FP32's rounding of the scale. NVFP4's scales are rounded to E4M3, which takes up to 1/16
            more of a block's amax: those count.
    """

    scale: Tensor | float
    flushed: Tensor
    saturated: Tensor


class Cast(Protocol):
    """How an operand is rounded.

    Attributes:
        format: The format.
        name: Its canonical name.
        rounding: How elements are rounded.
        scaling: The rule for the whole operand's scale, None where its parts have scales.
        either_way: Whether it is rounded once for both of its GEMMs, not along what each reduces.
    """

    @property
    def format(self) -> Format | BlockFormat:
        """See above."""

    @property
    def name(self) -> str:
        """See above."""

    @property
    def rounding(self) -> Rounding:
        """See above."""

    @property
    def scaling(self) -> TensorScaling | None:
        """See above."""

    @property
    def either_way(self) -> bool:
        """See above."""

    def round(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Tensor:
        """Returns the dequantised values, FP32.

        Args:
            matrix: [R, C], any floating dtype.
            dim: The dimension that the GEMM reduces.
            scale: FP32 [], where `scaling` is not None.
            draw: Source of stochastic rounding.
        """

    def count(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Counts:
        """Returns what `round` with the same arguments does."""


def cast_of(operand: Operand) -> Cast:
    """Returns the cast that a plan asks for."""
    fmt, recipe = operand.format, operand.recipe
    if isinstance(fmt, Format):
        if isinstance(recipe, RowScaling):
            return RowCast(fmt, CurrentScaling(recipe.power_of_two), operand.rounding)
        # `Operand` refuses the others with an element format.
        assert not isinstance(recipe, (BlockScaling, MXScaling, NVFP4Scaling))  # noqa: S101
        return TensorCast(fmt, recipe, operand.rounding)
    if isinstance(recipe, NVFP4Scaling) and recipe.square:
        fmt = replace(fmt, block=SQUARE)
    return BlockCast(
        fmt, recipe if isinstance(recipe, MXScaling) else MXScaling(), operand.rounding
    )


@dataclass(frozen=True)
class TensorCast:
    """One scale for the operand: Q(x * scale) / scale, each step in FP32 as torchao does it."""

    format: Format
    scaling: TensorScaling
    rounding: Rounding = "nearest"
    either_way = True

    @property
    def name(self) -> str:
        """The format's."""
        return self.format.name

    def round(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Tensor:  # noqa: ARG002
        """Returns the dequantised values."""
        assert scale is not None  # noqa: S101
        scaled = matrix.to(torch.float32) * scale
        return round_fp32(scaled, self.format, self.rounding, draw).div_(scale)

    def count(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Counts:  # noqa: ARG002
        """Returns what `round` does."""
        assert scale is not None  # noqa: S101
        scaled = matrix.to(torch.float32) * scale
        grid = round_fp32(scaled, self.format, self.rounding, draw)
        return Counts(scale, *_losses(matrix, scaled, grid, self.format))


@dataclass(frozen=True)
class RowCast:
    """A scale for each row along the reduced dimension."""

    format: Format
    rule: CurrentScaling
    rounding: Rounding = "nearest"
    scaling = None
    either_way = False

    @property
    def name(self) -> str:
        """The format's."""
        return self.format.name

    def round(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Tensor:  # noqa: ARG002
        """Returns the dequantised values."""
        scales, scaled = self._scaled(matrix, dim)
        return round_fp32(scaled, self.format, self.rounding, draw).div_(scales)

    def count(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Counts:  # noqa: ARG002
        """Returns what `round` does."""
        _, scaled = self._scaled(matrix, dim)
        grid = round_fp32(scaled, self.format, self.rounding, draw)
        return Counts(torch.nan, *_losses(matrix, scaled, grid, self.format))

    def _scaled(self, matrix: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        amax = matrix.abs().amax(dim, keepdim=True)
        scales, _ = self.rule.step({}, amax, self.format)
        return scales, matrix.to(torch.float32) * scales


@dataclass(frozen=True)
class BlockCast:
    """A scale for each block along the reduced dimension, or for each square block."""

    format: BlockFormat
    mx: MXScaling
    rounding: Rounding = "nearest"
    scaling = None

    @property
    def name(self) -> str:
        """The format's."""
        return self.format.name

    @property
    def either_way(self) -> bool:
        """Whether blocks are square."""
        return self.format.block[0] == self.format.block[1]

    def round(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Tensor:  # noqa: ARG002
        """Returns the dequantised values."""
        return self._rounded(matrix, dim, draw).values

    def count(self, matrix: Tensor, dim: int, scale: Tensor | None, draw: Draw) -> Counts:  # noqa: ARG002
        """Returns what `round` does."""
        rounded = self._rounded(matrix, dim, draw)
        losses = _losses(matrix, rounded.scaled, rounded.grid, self.format.element, rounded.values)
        return Counts(torch.nan, *losses)

    def _rounded(self, matrix: Tensor, dim: int, draw: Draw) -> BlockRounded:
        return round_blocks_fp32(
            matrix.to(torch.float32),
            self.format,
            dim=dim,
            scale_rule=self.mx.rule,
            rounding=self.rounding,
            generator=draw,
        )


def amax_of(matrix: Tensor) -> Tensor:
    """Returns the largest magnitude, FP32 []: NaN where there is one, 0 of nothing."""
    if not matrix.numel():
        return torch.zeros((), device=matrix.device)
    low, high = torch.aminmax(matrix)  # one pass and no copy, which `abs` would be
    return torch.maximum(-low, high).to(torch.float32)


def _losses(
    matrix: Tensor, scaled: Tensor, grid: Tensor, fmt: Format, values: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    # NaN counts as non-zero on both sides.
    survivors = torch.count_nonzero(grid if values is None else values)
    above = torch.count_nonzero(scaled.abs() > fmt.max * (1 + _SCALE_ROUNDING))
    return torch.count_nonzero(matrix) - survivors, above
