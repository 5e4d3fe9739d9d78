"""Rounding to a format's grid in FP32: what `quantize` answers, in a tenth of its time.

For formats whose grid fits into FP32 with room to spare. A number x of binade 2^e has grid
neighbours 2^(e - m) apart; added to 1.5 * 2^23 such steps it is rounded to whole steps by FP32's
own round to nearest even, and the subtraction is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from numwatch.formats.modes import RoundingError
from numwatch.formats.rounding import quantize

if TYPE_CHECKING:
    from torch import Tensor

    from numwatch.formats.modes import Rounding
    from numwatch.formats.types import Format

_FP32_EXPONENT_BITS = 0x7F800000
_FP32_MANTISSA_BITS = 23
_WIDE_BITS = 16
_CAST_ALIKE = (torch.float16, torch.bfloat16)


def round_fp32(
    x: Tensor,
    fmt: Format,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns the grid values of `fmt` nearest to an FP32 tensor; saturates.

    Bit for bit what `quantize(x, fmt)` returns: ties to even, infinities to the largest value, NaN
    to NaN, -0 where the format has one. Waits for no device and leaves `x` as it is.

    Args:
        x: FP32, already scaled; any shape.
        fmt: Any format.
        rounding: `stochastic` as in `quantize`, with the probability a multiple of 2^-24: it takes
            the neighbour above oftener than exact by less than that.
        generator: Source of randomness for `stochastic`, on the device of `x`.
    """
    if rounding == "nearest" and fmt.torch_dtype in _CAST_ALIKE:
        # Clamped, such a cast does the same in every version of torch.
        return x.clamp(fmt.min, fmt.max).to(fmt.torch_dtype).to(torch.float32)
    if fmt.bits >= _WIDE_BITS or not fmt.has_subnormals:
        return quantize(x, fmt, rounding=rounding, generator=generator)
    grid = x.clamp(fmt.min, fmt.max)
    # The power of two at or below |x|, not below that of the subnormals.
    steps = grid.view(torch.int32).bitwise_and(_FP32_EXPONENT_BITS).view(torch.float32)
    steps = steps.clamp_(min=2.0**fmt.emin) if not fmt.is_integer else torch.ones_like(grid)
    if rounding == "nearest":
        steps.mul_(1.5 * 2.0 ** (_FP32_MANTISSA_BITS - _precision(fmt)))
        grid.add_(steps).sub_(steps)
    elif rounding == "stochastic":
        steps.mul_(2.0 ** -_precision(fmt))
        grid.div_(steps)
        below = grid.floor()
        draw = torch.rand(grid.shape, device=grid.device, generator=generator)
        grid = (below + (draw < grid - below)).mul_(steps)
    else:
        raise RoundingError(f"rounding is 'nearest' or 'stochastic', got {rounding!r}")
    return torch.copysign(grid, x, out=grid) if fmt.has_negative_zero else grid.add_(0.0)


def _precision(fmt: Format) -> int:
    """Returns how many binary places a grid step lies below the binade's power of two."""
    if not fmt.is_integer:
        return fmt.mantissa_bits
    return fmt.mantissa_bits + fmt.bias - 1
