"""The dtypes that are watched, as bit patterns: sign, then a magnitude that orders like the value.

Reading integers instead of floats keeps counts exact whatever the processor does with subnormals
(`torch.set_flush_denormal`) and costs no conversion.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BitLayout:
    """How a float dtype lies in an integer of its width.

    Attributes:
        integer: The torch dtype of that integer.
        mantissa_bits: Width of the mantissa field.
        bias: What is subtracted from the exponent field.
        largest: Magnitude pattern of the largest finite value; larger patterns are not finite.
        has_inf: Whether the next larger pattern is inf; else it is NaN, as all larger ones are.
        negative_zero_is_nan: Whether the pattern of -0 is NaN, though its magnitude pattern is 0.
    """

    integer: torch.dtype
    mantissa_bits: int
    bias: int
    largest: int
    has_inf: bool = True
    negative_zero_is_nan: bool = False

    @property
    def magnitude_mask(self) -> int:
        """All bits but the sign."""
        return (1 << (8 * self.integer.itemsize - 1)) - 1

    def magnitude(self, pattern: int) -> float:
        """Returns the value of a finite magnitude pattern."""
        exponent = pattern >> self.mantissa_bits
        mantissa = pattern & ((1 << self.mantissa_bits) - 1)
        if exponent:
            mantissa |= 1 << self.mantissa_bits
        return math.ldexp(mantissa, max(exponent, 1) - self.bias - self.mantissa_bits)


LAYOUTS = {
    torch.float64: BitLayout(torch.int64, 52, 1023, 0x7FEF_FFFF_FFFF_FFFF),
    torch.float32: BitLayout(torch.int32, 23, 127, 0x7F7F_FFFF),
    torch.bfloat16: BitLayout(torch.int16, 7, 127, 0x7F7F),
    torch.float16: BitLayout(torch.int16, 10, 15, 0x7BFF),
    torch.float8_e4m3fn: BitLayout(torch.uint8, 3, 7, 0x7E, has_inf=False),
    torch.float8_e5m2: BitLayout(torch.uint8, 2, 15, 0x7B),
    torch.float8_e4m3fnuz: BitLayout(
        torch.uint8, 3, 8, 0x7F, has_inf=False, negative_zero_is_nan=True
    ),
    torch.float8_e5m2fnuz: BitLayout(
        torch.uint8, 2, 16, 0x7F, has_inf=False, negative_zero_is_nan=True
    ),
}


def every_kind(dtype: torch.dtype) -> Tensor:
    """Returns a tensor with every kind of value a watched dtype has, made of bit patterns.

    Of each exponent within 130 of 1.0's the power of two, its successor and 1.5 times it; zeros,
    subnormals, infinities and NaNs; of some the negative too.
    """
    layout = LAYOUTS[dtype]
    top = layout.magnitude_mask >> layout.mantissa_bits
    exponents = {0, 1, top, *range(max(layout.bias - 130, 1), min(layout.bias + 130, top))}
    powers = [exponent << layout.mantissa_bits for exponent in sorted(exponents)]
    half = 1 << (layout.mantissa_bits - 1)
    codes = [power | mantissa for power in powers for mantissa in (0, 1, half)]
    negatives = [0, 1, layout.bias << layout.mantissa_bits, layout.largest + 1]
    # As negative integers, whose highest bit is set.
    codes += [(code & layout.magnitude_mask) - layout.magnitude_mask - 1 for code in negatives]
    return torch.tensor(codes, device="cpu").to(layout.integer).view(dtype)


WATCHED_DTYPES = tuple(LAYOUTS)
"""Every dtype the kernels take."""

FLOAT8_DTYPES = tuple(dtype for dtype in WATCHED_DTYPES if dtype.itemsize == 1)
"""Those of them with 256 codes."""


def is_watched_dtype(dtype: torch.dtype) -> bool:
    """Whether the kernels take tensors of this dtype; integers, bools and complex they don't."""
    return dtype in LAYOUTS


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")
