"""The formats, as data.

Sources: IEEE 754-2019 (FP32, FP16); OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP
Microscaling Formats 1.0 (E3M2, E2M3, E2M1, E8M0, the MXINT8 element); Noune et al. 2022,
arXiv:2206.02915 (FNUZ); NVIDIA A100 whitepaper (TF32, here without subnormals: it is a format
Tensor Cores compute in, never one that is stored).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from numwatch.formats.types import Format

if TYPE_CHECKING:
    from collections.abc import Mapping


_ALL = (
    Format(
        "fp32",
        exponent_bits=8,
        mantissa_bits=23,
        bias=127,
        max=(2 - 2**-23) * 2.0**127,
        has_inf=True,
        has_nan=True,
        aliases=("float32", "float", "single", "f32", "binary32"),
        torch_name="float32",
    ),
    Format(
        "tf32",
        exponent_bits=8,
        mantissa_bits=10,
        bias=127,
        max=(2 - 2**-10) * 2.0**127,
        has_inf=True,
        has_nan=True,
        has_subnormals=False,
        aliases=("tfloat32", "tensorfloat32"),
    ),
    Format(
        "bf16",
        exponent_bits=8,
        mantissa_bits=7,
        bias=127,
        max=(2 - 2**-7) * 2.0**127,
        has_inf=True,
        has_nan=True,
        aliases=("bfloat16", "brain16"),
        torch_name="bfloat16",
    ),
    Format(
        "fp16",
        exponent_bits=5,
        mantissa_bits=10,
        bias=15,
        max=65504.0,
        has_inf=True,
        has_nan=True,
        aliases=("float16", "half", "f16", "binary16"),
        torch_name="float16",
    ),
    Format(
        "e4m3",
        exponent_bits=4,
        mantissa_bits=3,
        bias=7,
        max=448.0,
        has_nan=True,
        aliases=("e4m3fn", "float8_e4m3fn", "float8_e4m3", "fp8_e4m3", "fp8_e4m3fn", "f8e4m3fn"),
        torch_name="float8_e4m3fn",
    ),
    Format(
        "e4m3fnuz",
        exponent_bits=4,
        mantissa_bits=3,
        bias=8,
        max=240.0,
        has_nan=True,
        has_negative_zero=False,
        aliases=("float8_e4m3fnuz", "fp8_e4m3fnuz", "f8e4m3fnuz"),
        torch_name="float8_e4m3fnuz",
    ),
    Format(
        "e5m2",
        exponent_bits=5,
        mantissa_bits=2,
        bias=15,
        max=57344.0,
        has_inf=True,
        has_nan=True,
        aliases=("float8_e5m2", "fp8_e5m2", "f8e5m2"),
        torch_name="float8_e5m2",
    ),
    Format(
        "e5m2fnuz",
        exponent_bits=5,
        mantissa_bits=2,
        bias=16,
        max=57344.0,
        has_nan=True,
        has_negative_zero=False,
        aliases=("float8_e5m2fnuz", "fp8_e5m2fnuz", "f8e5m2fnuz"),
        torch_name="float8_e5m2fnuz",
    ),
    Format(
        "e3m2",
        exponent_bits=3,
        mantissa_bits=2,
        bias=3,
        max=28.0,
        aliases=("float6_e3m2fn", "fp6_e3m2", "f6e3m2fn"),
    ),
    Format(
        "e2m3",
        exponent_bits=2,
        mantissa_bits=3,
        bias=1,
        max=7.5,
        aliases=("float6_e2m3fn", "fp6_e2m3", "f6e2m3fn"),
    ),
    # torch stores E2M1 only in pairs (float4_e2m1fn_x2), so it has an alias and no dtype.
    Format(
        "e2m1",
        exponent_bits=2,
        mantissa_bits=1,
        bias=1,
        max=6.0,
        aliases=("fp4", "float4_e2m1fn_x2", "float4_e2m1fn", "fp4_e2m1", "f4e2m1fn"),
    ),
    Format(
        "e8m0",
        exponent_bits=8,
        mantissa_bits=0,
        bias=127,
        max=2.0**127,
        has_nan=True,
        has_subnormals=False,
        has_zero=False,
        has_negative_zero=False,
        signed=False,
        aliases=("float8_e8m0fnu", "e8m0fnu", "ue8m0", "f8e8m0fnu"),
        torch_name="float8_e8m0fnu",
    ),
    Format(
        "int8",
        exponent_bits=0,
        mantissa_bits=7,
        bias=-6,
        max=127.0,
        has_negative_zero=False,
        aliases=("i8", "s8"),
        torch_name="int8",
    ),
    # The element of the block format of the same name: an INT8 with an implied factor of 2^-6.
    Format(
        "mxint8",
        exponent_bits=0,
        mantissa_bits=7,
        bias=0,
        max=1 + 63 / 64,
        has_negative_zero=False,
        aliases=("mxint8_element",),
    ),
)

FORMATS: Mapping[str, Format] = MappingProxyType({fmt.name: fmt for fmt in _ALL})
"""Every format by its canonical name, widest first."""
