"""Rounding a tensor through a block format: the blocks' scales, then the elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from numwatch.formats.lookup import get_block_format, get_format
from numwatch.formats.modes import RoundingError
from numwatch.formats.mx_exponents import E8M0_EXPONENT_MAX, E8M0_NAN, clip_at, exponent_by_rule
from numwatch.formats.rounding import power_of_two, quantize_fp64, result_dtype, to_fp64
from numwatch.formats.table import FORMATS

if TYPE_CHECKING:
    from numwatch.formats.blocks import BlockFormat
    from numwatch.formats.modes import Rounding, ScaleRule
    from numwatch.formats.types import Format


def round_to_block_format(
    x: torch.Tensor,
    fmt: str | BlockFormat,
    *,
    scale_rule: ScaleRule | None = None,
    rounding: Rounding = "nearest",
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Returns what is left of `x` after a cast to a block format and back.

    Example:
        >>> import torch
        >>> from numwatch import round_to_block_format
        >>> x = torch.tensor([[8.0, 1.0, 0.25] + [0.0] * 29])
        >>> round_to_block_format(x, "mxfp4")[0, :3]  # its largest element sets the scale
        tensor([8., 1., 0.])

    - MX: element * 2^e with e by `mx_scale_exponent`.
    - NVFP4 (arXiv:2509.25149, appendix C; no Hadamard transform): the tensor's scale is
      S = min(448 * 6 / amax, FP32's max), 1 where the amax is 0 or infinite; a block's scale
      s = E4M3(block amax * S / 6); an element E2M1(x * S / s), read back as element * s / S. A
      block with block amax / amax <= 2^-18.8 gets the scale 0 and vanishes.
    - Block FP8: scaled by the largest power of two that keeps the block's amax at or below 448
      (Transformer Engine's default), 1 where the amax is infinite.

    Elements saturate. A NaN takes its whole block to NaN, as its scale is NaN; the scale of an
    NVFP4 tensor comes from the other blocks.

    Args:
        x: Floating-point tensor of any shape, dtype, layout in memory and device with FP64.
        fmt: The block format, see `get_block_format`.
        scale_rule: How MX chooses a block's exponent, `floor` by default. Only for MX.
        rounding: Of the elements, see `quantize`; scales always round to nearest.
        dim: The dimension blocks run along, in a product the reduced one. All others are taken
            together as rows, which matters to blocks of more than one row. A last block that is
            not full is filled up with zeros.
        generator: Source of randomness for `stochastic`.

    Returns:
        The dequantised values: detached, in the shape of `x`, FP32 (FP64 for FP64 input).

    Raises:
        UnknownFormatError: No block format is called `fmt`.
        RoundingError: `x` is not floating point, or `rounding` or `scale_rule` is none of those
            above, or a `scale_rule` was given for a format that is not MX.
    """
    block_format = get_block_format(fmt)
    if scale_rule is not None and not block_format.is_mx:
        raise RoundingError(
            f"scale_rule is for MX formats; {block_format.name} has a rule of its own"
        )
    values = to_fp64(x)
    if values.numel() == 0:
        return values.to(result_dtype(x))
    along_last = (values.reshape(1) if values.ndim == 0 else values).movedim(dim, -1)
    rows = along_last.reshape(-1, along_last.shape[-1])
    blocks = into_blocks(rows, block_format.block)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True)
    encode, decode = block_scales(amax, block_format, scale_rule or "floor")
    scaled = blocks * encode / torch.where(decode == 0, 1.0, decode)
    grid = quantize_fp64(scaled, block_format.element, rounding, generator=generator)
    dequantized = (grid * decode / encode).flatten(2, 3).flatten(0, 1)
    whole = dequantized[: rows.shape[0], : rows.shape[1]].reshape(along_last.shape)
    return whole.movedim(-1, dim).reshape(x.shape).to(result_dtype(x))


def mx_scale_exponent(
    amax: torch.Tensor, element: str | Format, rule: ScaleRule = "floor"
) -> torch.Tensor:
    """Returns the exponent e of an MX block's scale 2^e.

    With E the exponent of the element format's largest value, `emax`:

    - `floor`: floor(log2 amax) - E. OCP Microscaling Formats 1.0, section 6.3. Clips amaxes whose
      mantissa is above that of the largest value.
    - `ceil`: ceil(log2 amax) - E.
    - `even`: `floor` of the amax rounded to the element's precision, ties up.
    - `rceil`: ceil(log2(amax / largest value)), the least e that clips nothing. Transformer Engine,
      cuBLAS.

    Args:
        amax: Largest magnitudes of blocks, any shape and floating-point dtype.
        element: Format of the elements.
        rule: One of the four.

    Returns:
        int32 in the shape of `amax`, clamped to -127..127: what E8M0 holds. An amax of 0 gives
        -127; NaN gives 128, whose E8M0 code is NaN's. An infinite amax counts as 2^128, under
        `rceil` as larger than any other.

    Raises:
        UnknownFormatError: No format is called `element`.
        RoundingError: `rule` is none of the four.
    """
    fmt = get_format(element)
    values = to_fp64(amax)
    mantissa, exponent = torch.frexp(values.clamp(max=clip_at(rule)))
    exponent = exponent_by_rule(mantissa, exponent, fmt, rule)
    exponent = exponent.clamp(-E8M0_EXPONENT_MAX, E8M0_EXPONENT_MAX)
    exponent = torch.where(values == 0, -E8M0_EXPONENT_MAX, exponent)
    return torch.where(values.isnan(), E8M0_NAN, exponent).to(torch.int32)


def into_blocks(rows: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Returns `rows` [R, C] as [R / r, r, C / c, c], filled up with zeros."""
    height, width = block
    padding = (0, -rows.shape[1] % width, 0, -rows.shape[0] % height)
    padded = torch.nn.functional.pad(rows, padding)
    return padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)


def block_scales(
    amax: torch.Tensor, fmt: BlockFormat, rule: ScaleRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (encode, decode): element Q(x * encode / decode), value element * decode / encode.

    Kept apart because each is exact where their quotient is not: so an exact tie stays one.
    """
    if fmt.tensor_scale:
        return _two_level_scales(amax, fmt)
    exponent = mx_scale_exponent(amax, fmt.element, rule if fmt.is_mx else "rceil")
    if not fmt.is_mx:
        exponent = torch.where(amax.isinf(), 0, exponent)
    decode = torch.where(exponent == E8M0_NAN, torch.nan, power_of_two(exponent))
    return torch.ones_like(decode), decode


def _two_level_scales(amax: torch.Tensor, fmt: BlockFormat) -> tuple[torch.Tensor, torch.Tensor]:
    tensor_amax = amax.nan_to_num(nan=0.0, posinf=torch.inf).amax()
    largest = fmt.scale.max * fmt.element.max
    encode = (largest / tensor_amax).clamp(max=FORMATS["fp32"].max).to(torch.float32)
    ordinary = (tensor_amax > 0) & tensor_amax.isfinite()
    encode = torch.where(ordinary, encode.to(torch.float64), 1.0)
    decode = quantize_fp64(amax * encode / fmt.element.max, fmt.scale, "nearest")
    return encode, decode
