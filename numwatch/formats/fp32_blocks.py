"""Rounding to a block format in FP32, along either dimension of a matrix: what emulation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from numwatch.formats.block_rounding import block_scales, into_blocks
from numwatch.formats.fp32_rounding import round_fp32

if TYPE_CHECKING:
    from torch import Tensor

    from numwatch.formats.blocks import BlockFormat
    from numwatch.formats.modes import Rounding, ScaleRule


@dataclass(frozen=True)
class BlockRounded:
    """A matrix on the grid of a block format.

    Attributes:
        values: Dequantised, FP32 in the matrix's shape.
        scaled: What was rounded: the elements over their block's scale, FP32, in blocks and filled
            up with zeros.
        grid: What they were rounded to.
    """

    values: Tensor
    scaled: Tensor
    grid: Tensor


def round_blocks_fp32(
    matrix: Tensor,
    fmt: BlockFormat,
    *,
    dim: int = -1,
    scale_rule: ScaleRule = "floor",
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> BlockRounded:
    """Rounds a matrix as `round_to_block_format` does, but in FP32.

    Scales are the same. With a power-of-two scale (MX, block FP8) the results are, bit for bit.
    NVFP4's elements are x * S / s rounded twice in FP32 before they are rounded to the grid, so an
    element within 2^-22 of the middle between two neighbours, relative to itself, may go to either.

    Args:
        matrix: FP32 [R, C].
        fmt: The block format.
        dim: The dimension that blocks run along.
        scale_rule: For MX.
        rounding: Of the elements, see `round_fp32`.
        generator: Source of randomness for `stochastic`.
    """
    rows = matrix if dim in (-1, 1) else matrix.t()
    blocks = into_blocks(rows, fmt.block)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).to(torch.float64)
    encode, decode = (part.to(torch.float32) for part in block_scales(amax, fmt, scale_rule))
    divisor = torch.where(decode == 0, 1.0, decode)
    scaled = (blocks * encode if fmt.tensor_scale else blocks) / divisor
    grid = round_fp32(scaled, fmt.element, rounding, generator)
    values = grid * decode
    if fmt.tensor_scale:
        values = values / encode
    whole = values.flatten(2, 3).flatten(0, 1)[: rows.shape[0], : rows.shape[1]]
    return BlockRounded(whole if rows is matrix else whole.t(), scaled, grid)
