"""Every value of a format, and the inputs at which rounding to it can go wrong."""

import gfloat.formats
import ml_dtypes
import numpy as np
import torch

from numwatch.formats import FORMATS, Format

SMALL = tuple(fmt for fmt in FORMATS.values() if fmt.bits <= 16)
SMALL_FLOATS = tuple(fmt for fmt in SMALL if not fmt.is_integer)

# name: the format in ml_dtypes and in gfloat
ORACLES = {
    "fp16": (np.float16, gfloat.formats.format_info_binary16),
    "bf16": (ml_dtypes.bfloat16, gfloat.formats.format_info_bfloat16),
    "e4m3": (ml_dtypes.float8_e4m3fn, gfloat.formats.format_info_ocp_e4m3),
    "e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, None),
    "e5m2": (ml_dtypes.float8_e5m2, gfloat.formats.format_info_ocp_e5m2),
    "e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, None),
    "e3m2": (ml_dtypes.float6_e3m2fn, gfloat.formats.format_info_ocp_e3m2),
    "e2m3": (ml_dtypes.float6_e2m3fn, gfloat.formats.format_info_ocp_e2m3),
    "e2m1": (ml_dtypes.float4_e2m1fn, gfloat.formats.format_info_ocp_e2m1),
    "e8m0": (ml_dtypes.float8_e8m0fnu, gfloat.formats.format_info_ocp_e8m0),
}


def magnitudes(fmt: Format) -> np.ndarray:
    """Returns all finite magnitudes of `fmt`, ascending, FP64, from its defining fields alone."""
    if fmt.is_integer:
        step = 2.0 ** (1 - fmt.bias - fmt.mantissa_bits)
        return np.arange(round(fmt.max / step) + 1) * step
    fraction = np.arange(2**fmt.mantissa_bits) / 2**fmt.mantissa_bits
    normal = [
        (1 + fraction) * 2.0 ** (e - fmt.bias)
        for e in range(1 if fmt.has_zero else 0, 2**fmt.exponent_bits)
    ]
    lowest = fraction * 2.0 ** (1 - fmt.bias) if fmt.has_zero else []
    values = np.concatenate([lowest, *normal])
    return values[values <= fmt.max]


def values(fmt: Format) -> np.ndarray:
    """Returns all finite values of `fmt`, ascending, FP64; one zero."""
    positive = magnitudes(fmt)
    if not fmt.signed:
        return positive
    both = np.concatenate([-positive[:0:-1], positive])
    return np.concatenate([[fmt.min], both]) if fmt.is_integer else both


def critical_inputs(fmt: Format) -> torch.Tensor:
    """Returns FP32 inputs of both signs that show every decision of rounding to `fmt`.

    Every value, every midpoint of neighbours, the FP32 numbers next to each of them, the edges
    of the range, the first numbers beyond it, zeros and infinities.
    """
    grid = magnitudes(fmt)
    beyond = 2 * grid[-1] - grid[-2] if grid.size > 1 else 2 * grid[-1]
    if fmt.mantissa_bits == 0:
        beyond = 2 * grid[-1]
    ladder = np.append(grid, beyond)
    midpoints = (ladder[1:] + ladder[:-1]) / 2
    below_all = [grid[0] / 2, grid[0] / 4]
    with np.errstate(over="ignore"):
        points = np.concatenate([ladder, midpoints, below_all, [beyond * 4]]).astype(np.float32)
        inf = np.float32(np.inf)
        around = [np.nextafter(points, inf), np.nextafter(points, -inf)]
    positive = np.concatenate([points, *around, [0.0, np.inf, 1e-45, 3e38]]).astype(np.float32)
    return torch.from_numpy(np.unique(np.concatenate([positive, -positive]))).contiguous()


def bits(x: torch.Tensor) -> torch.Tensor:
    """Returns FP32 values as integers, so that -0 differs from 0 and all NaNs are equal."""
    assert x.dtype == torch.float32
    return torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32).to(torch.int64))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts equality bit for bit, NaN equal to NaN, and names the first differences."""
    actual, expected = actual.to(torch.float32), expected.to(torch.float32)
    assert actual.shape == expected.shape
    wrong = (bits(actual) != bits(expected)).flatten().nonzero().flatten()[:5]
    assert wrong.numel() == 0, (
        f"at {wrong.tolist()}: {actual.flatten()[wrong].tolist()} "
        f"instead of {expected.flatten()[wrong].tolist()}"
    )
