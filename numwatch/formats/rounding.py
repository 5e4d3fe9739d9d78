"""Rounding a tensor to a format's grid, by FP64 arithmetic alone.

A cast such as `x.to(torch.float8_e4m3fn)` is used nowhere: what it does above the largest value
differs between versions of torch. FP64 carries the product of two FP32 numbers exactly, so for
inputs and scales up to FP32 the only rounding is the one asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from numwatch.formats.lookup import get_format
from numwatch.formats.modes import RoundingError

if TYPE_CHECKING:
    from numwatch.formats.modes import Rounding
    from numwatch.formats.types import Format

_FP64_MANTISSA_BITS = 52
_FP64_BIAS = 1023
_FP64_EXPONENT_MASK = 0x7FF
_FP64_LARGEST_EXPONENT = 1023


def round_to_format(
    x: torch.Tensor,
    fmt: str | torch.dtype | Format,
    *,
    scale: float | torch.Tensor = 1.0,
    rounding: Rounding = "nearest",
    saturate: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Returns what is left of `x` after a cast to `fmt` at `scale` and back: Q(x * scale) / scale.

    Example:
        >>> import torch
        >>> from numwatch import round_to_format
        >>> round_to_format(torch.tensor([0.3, 1000.0, 2.0**-12]), "e4m3").tolist()
        [0.3125, 448.0, 0.0]
        >>> round_to_format(torch.tensor([2.0**-12]), "e4m3", scale=2.0**4).item() == 2.0**-12
        True

    Arguments, special values and errors are those of `quantize`.

    Returns:
        The dequantised values: detached, in the shape of `x`, FP32 (FP64 for FP64 input). The
        division is done in FP64 and then rounded to FP32, so with a scale that is not a power of
        two a result may be off by half an ulp.
    """
    scale, target = _checked_scale(scale), get_format(fmt)
    scaled = to_fp64(x) * scale
    grid = quantize_fp64(scaled, target, rounding, saturate=saturate, generator=generator)
    return (grid / scale).to(result_dtype(x))


def quantize(
    x: torch.Tensor,
    fmt: str | torch.dtype | Format,
    *,
    scale: float | torch.Tensor = 1.0,
    rounding: Rounding = "nearest",
    saturate: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Returns the grid values of `fmt` that `x * scale` rounds to.

    Example:
        >>> import torch
        >>> from numwatch import quantize
        >>> quantize(torch.tensor([2.5, 3.5, 9.0]), "e2m1")  # ties go to the even mantissa
        tensor([2., 4., 6.])

    - NaN stays NaN, also where the format has no code for it.
    - An overflow is a magnitude that rounds above the largest value as if the exponent range had no
      end. It becomes the largest value; with `saturate=False` infinity, NaN where the format has
      no infinity, and the largest value where it has neither. Infinities are overflows.
    - -0 stays -0 where the format has one.
    - E8M0 drops the sign, takes zero and everything below its range to 2^-127 and rounds a tie up,
      as torch casts it. (From 2^-127 to 1.5 * 2^-127 torch goes up although 2^-127 is nearer; here
      the nearer value is taken.)
    - TF32 has no subnormals: below 2^-126 the neighbours are 0 and 2^-126.

    Args:
        x: Floating-point tensor of any shape, dtype, layout in memory and device with FP64.
        fmt: The format, see `get_format`.
        scale: Positive and finite; a tensor must broadcast to the shape of `x`. In the sense of
            x * scale, the inverse of the "descale" that matrix kernels take.
        rounding: `nearest` takes ties to the even mantissa. `stochastic` takes the neighbour above
            in magnitude with probability (distance from the one below) / (their distance); a value
            on the grid stays. Unbiased wherever the result does not saturate.
        saturate: See above.
        generator: Source of randomness for `stochastic`.

    Returns:
        The grid values: detached, in the shape of `x`, FP32 (FP64 for FP64 input), which hold
        every value of every format exactly.

    Raises:
        UnknownFormatError: No format is called `fmt`.
        RoundingError: `x` is not floating point, `scale` is a number that is not positive and
            finite, or `rounding` is neither of the two.
    """
    scaled, target = to_fp64(x) * _checked_scale(scale), get_format(fmt)
    grid = quantize_fp64(scaled, target, rounding, saturate=saturate, generator=generator)
    return grid.to(result_dtype(x))


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Returns 2^exponent in FP64, exactly on every device (`torch.exp2` promises no such thing).

    Args:
        exponent: Integers from -1022 to 1023.
    """
    return ((exponent.to(torch.int64) + _FP64_BIAS) << _FP64_MANTISSA_BITS).view(torch.float64)


def quantize_fp64(
    x: torch.Tensor,
    fmt: Format,
    rounding: Rounding,
    *,
    saturate: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Returns the grid values of `fmt` nearest to the FP64 tensor `x`; see `quantize`."""
    if not fmt.signed:
        x = x.abs()
    step = _spacing(x, fmt)
    steps = x / step
    if rounding == "nearest":
        steps = steps.round()
    elif rounding == "stochastic":
        steps = _round_stochastically(steps, generator)
    else:
        raise RoundingError(f"rounding is 'nearest' or 'stochastic', got {rounding!r}")
    grid = steps * step
    if not fmt.has_zero:
        grid = grid.clamp(min=fmt.min)
    if not fmt.has_negative_zero:
        grid = grid + 0.0
    if saturate or not (fmt.has_inf or fmt.has_nan):
        return grid.clamp(fmt.min, fmt.max)
    overflow = torch.copysign(torch.full_like(grid, math.inf), grid) if fmt.has_inf else math.nan
    return torch.where(grid.abs() > fmt.max, overflow, grid)


def to_fp64(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` detached, in FP64.

    Raises:
        RoundingError: `x` is not floating point.
    """
    if not x.is_floating_point():
        raise RoundingError(f"rounding takes a floating-point tensor, got {x.dtype}: convert it")
    return x.detach().to(torch.float64)


def result_dtype(x: torch.Tensor) -> torch.dtype:
    """Returns the dtype that rounding answers `x` in: FP64 for FP64, else FP32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _spacing(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Returns the distance between the grid neighbours of |x|, as if `fmt` had no largest value."""
    field = (x.view(torch.int64) >> _FP64_MANTISSA_BITS) & _FP64_EXPONENT_MASK
    # Without the upper bound an infinity would be a grid step of its own, and inf / inf a NaN.
    exponent = (field - _FP64_BIAS).clamp(max=_FP64_LARGEST_EXPONENT)
    step = power_of_two(exponent.clamp(min=fmt.emin) - fmt.mantissa_bits)
    if fmt.has_subnormals:
        return step
    return torch.where(exponent < fmt.emin, fmt.smallest_subnormal, step)


def _round_stochastically(steps: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    draw = torch.rand(steps.shape, dtype=steps.dtype, device=steps.device, generator=generator)
    below = steps.abs().floor()
    # Compared with the fraction rather than added to it: the sum could round up to the next whole
    # number and take a value off the grid that was on it.
    above = draw < steps.abs() - below
    return torch.copysign(below + above, steps)


def _checked_scale(scale: float | torch.Tensor) -> float | torch.Tensor:
    if isinstance(scale, torch.Tensor):
        return scale.detach().to(torch.float64)
    if not (math.isfinite(scale) and scale > 0):
        raise RoundingError(f"a scale is positive and finite, got {scale}")
    return float(scale)
