"""The dtypes that are watched, as bit patterns: sign, then a magnitude that orders like the value.

Reading integers instead of floats keeps counts exact whatever the processor does with subnormals
(`torch.set_flush_denormal`) and costs no conversion.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BitLayout:
    """How a float dtype lies in an integer of its width.

    Attributes:
        integer: The torch dtype of that integer.
        mantissa_bits: Width of the mantissa field.
        bias: What is subtracted from the exponent field.
        largest: Magnitude pattern of the largest finite value; larger patterns are not finite.
    """

    integer: torch.dtype
    mantissa_bits: int
    bias: int
    largest: int

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
    torch.float8_e4m3fn: BitLayout(torch.uint8, 3, 7, 0x7E),
    torch.float8_e5m2: BitLayout(torch.uint8, 2, 15, 0x7B),
    # NaN is the pattern of -0 here, whose magnitude is 0.
    torch.float8_e4m3fnuz: BitLayout(torch.uint8, 3, 8, 0x7F),
    torch.float8_e5m2fnuz: BitLayout(torch.uint8, 2, 16, 0x7F),
}

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
