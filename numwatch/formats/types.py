"""What a number format is: a few defining fields, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Format:
    """A number format: its values are a grid of mantissas times powers of two.

    A value has magnitude (1 + m / 2^mantissa_bits) * 2^(e - bias) for exponent fields e >= 1, and
    m / 2^mantissa_bits * 2^(1 - bias) for e = 0. An integer format is the case without exponent
    bits: all of its values are of the second kind, one step apart.

    Attributes:
        name: Canonical name.
        exponent_bits: Width of the exponent field; 0 for integers.
        mantissa_bits: Width of the stored mantissa.
        bias: What is subtracted from the exponent field.
        max: Largest finite value.
        has_inf: Whether infinities have a code.
        has_nan: Whether NaN has a code.
        has_subnormals: Whether e = 0 holds subnormals; without them it holds zero alone, or, where
            there is no zero either, one more power of two.
        has_zero: Whether zero has a code.
        has_negative_zero: Whether -0 has one.
        signed: Whether negative values have one.
        aliases: Other spellings, as libraries and papers write them.
        torch_name: Name of torch's dtype that stores it, one value an element, or None.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max: float
    has_inf: bool = False
    has_nan: bool = False
    has_subnormals: bool = True
    has_zero: bool = True
    has_negative_zero: bool = True
    signed: bool = True
    aliases: tuple[str, ...] = ()
    torch_name: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype of that name; None where there is none, or this torch is too old to have it."""
        if self.torch_name is None:
            return None
        import torch  # whoever has no tensors needs none

        found: torch.dtype | None = getattr(torch, self.torch_name, None)
        return found

    @property
    def bits(self) -> int:
        """Width of a code: sign, exponent and mantissa (TF32: 19, though stored in 32)."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def is_integer(self) -> bool:
        """Whether the values are evenly spaced, in two's complement."""
        return self.exponent_bits == 0

    @property
    def min(self) -> float:
        """Lowest finite value: -max, one step below it in integers, above 0 without a sign."""
        if not self.signed:
            return self.smallest_subnormal
        return -self.max - (self.smallest_subnormal if self.is_integer else 0.0)

    @property
    def emax(self) -> int:
        """Exponent of the largest value, floor(log2(max)); `emax_elem` of the MX specification."""
        return math.frexp(self.max)[1] - 1

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal value; above `emax` in integers, which have none."""
        return (1 if self.has_zero else 0) - self.bias

    @property
    def smallest_normal(self) -> float:
        """Smallest value with a full mantissa; above it the relative spacing is bounded."""
        return math.ldexp(1.0, self.emin)

    @property
    def tiny(self) -> float:
        """`smallest_normal` under its `finfo` name."""
        return self.smallest_normal

    @property
    def smallest_subnormal(self) -> float:
        """Smallest value above zero; equals `smallest_normal` where there are no subnormals."""
        return math.ldexp(1.0, self.emin - (self.mantissa_bits if self.has_subnormals else 0))

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger value."""
        return max(math.ldexp(1.0, -self.mantissa_bits), self.smallest_subnormal)

    @property
    def flush_threshold(self) -> float:
        """Largest magnitude that round-to-nearest-even sends to zero: half the smallest value.

        0.0 where the format has no zero (E8M0), so that nothing non-zero counts as flushed.
        """
        return self.smallest_subnormal / 2 if self.has_zero else 0.0

    @property
    def binades(self) -> int:
        """Number of powers of two from the smallest value to the largest, subnormals included."""
        return self.emax - (math.frexp(self.smallest_subnormal)[1] - 1) + 1
