"""Rounding to the nearest value of a format, for NumPy; `round_to_format` does it for tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from numwatch.formats.types import Format

Floats = npt.NDArray[np.float64]

_LARGEST_EXPONENT = 1023


def round_nearest(x: Floats, fmt: Format, scale: float = 1.0) -> Floats:
    """Returns Q(x * scale) / scale, saturated: bit for bit what `round_to_format` gives for FP64.

    Args:
        x: Float64, of any shape.
        fmt: The format.
        scale: Positive and finite.
    """
    with np.errstate(over="ignore"):
        return _on_the_grid(x * scale, fmt) / scale


def _on_the_grid(scaled: Floats, fmt: Format) -> Floats:
    if not fmt.signed:
        scaled = np.abs(scaled)
    # An infinity has the exponent field of a NaN: without an upper bound it were a step of its own.
    exponent = np.minimum((scaled.view(np.int64) >> 52 & 0x7FF) - 1023, _LARGEST_EXPONENT)
    step = np.ldexp(1.0, (np.maximum(exponent, fmt.emin) - fmt.mantissa_bits).astype(np.int32))
    if not fmt.has_subnormals:
        step = np.where(exponent < fmt.emin, fmt.smallest_subnormal, step)
    grid = np.rint(scaled / step) * step
    if not fmt.has_negative_zero:
        grid = grid + 0.0
    rounded: Floats = np.clip(grid, fmt.min, fmt.max)
    return rounded
