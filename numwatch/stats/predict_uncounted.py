"""What formats that scale a tensor in parts would flush of tensors whose parts were not counted.

The bounds of `predict_blocks` without block counts, row by row without a loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from numwatch.formats.mx_exponents import mx_exponents
from numwatch.formats.table import FORMATS
from numwatch.stats.block_layout import SLACK
from numwatch.stats.cuts_of_rows import shares_at_most
from numwatch.stats.predict_blocks import LARGEST_SCALE, LEAST_AMAX

if TYPE_CHECKING:
    from numwatch.formats import BlockFormat, Format, ScaleRule
    from numwatch.stats.histograms import Doubles, Histograms, Ints

_FP32_MAX = FORMATS["fp32"].max
_FP32_LEAST = FORMATS["fp32"].smallest_subnormal


def uncounted_block_shares(
    rows: Histograms, numel: Ints, fmt: BlockFormat, rule: ScaleRule | None
) -> tuple[Doubles, Doubles]:
    """Returns the shares that become zero and that saturate, float64 [n, 3] as value, low, high.

    Args:
        rows: n tensors.
        numel: Their elements, int64 [n].
        fmt: The format.
        rule: How MX chooses a block's exponent, `floor` by default.
    """
    element = fmt.element
    if fmt.tensor_scale:
        scale = _nvfp4_scales(rows.amax, fmt) / SLACK
        clips = np.ones(len(rows), np.bool_)
    else:
        rule = (rule or "floor") if fmt.is_mx else "rceil"
        exponents = mx_exponents(rows.amax, element, rule)
        scale = np.ldexp(1.0, -exponents)
        clips = np.full(len(rows), rule in ("floor", "even")) | (rows.amax >= LARGEST_SCALE)
    whole = shares_at_most(rows, element.flush_threshold, scale)
    none = np.zeros(len(rows))
    saturated = np.stack([none, none, clips.astype(np.float64)], axis=1)
    return _unseen(whole, numel, np.full(len(rows), fmt.block_size)), saturated


def uncounted_row_shares(
    rows: Histograms, numel: Ints, fmt: Format, *, power_of_two: bool, length: int | None
) -> tuple[Doubles, Doubles]:
    """Returns the same where each row of a tensor has a scale of its own.

    Args:
        rows: n tensors.
        numel: Their elements, int64 [n].
        fmt: Format of the elements.
        power_of_two: Whether scales are rounded down to powers of two.
        length: Elements in a row; by default those of a square.
    """
    with np.errstate(over="ignore"):
        in_fp32 = (fmt.max / np.maximum(rows.amax, LEAST_AMAX)).astype(np.float32)
    known = (in_fp32 > 0) & np.isfinite(in_fp32)  # FP32 has no scale for the others
    scale = np.where(known, in_fp32.astype(np.float64), 1.0)
    scale = np.ldexp(1.0, np.frexp(scale)[1] - 1) if power_of_two else scale / SLACK
    whole = shares_at_most(rows, fmt.flush_threshold, scale)
    lengths = np.full(len(rows), length) if length else np.sqrt(numel).astype(np.int64)
    flushed, saturated = _unseen(whole, numel, lengths), np.zeros((len(rows), 3))
    flushed[~known] = saturated[~known] = (0.0, 0.0, 1.0)
    return flushed, saturated


def _unseen(whole: Doubles, numel: Ints, size: Ints) -> Doubles:
    """At most what the whole loses; a part of one element would lose nothing."""
    share = np.log(np.maximum(size, 1)) / np.log(np.maximum(np.maximum(numel, size), 2))
    value = np.minimum(whole[:, 0] * share, whole[:, 2])
    return np.stack([value, np.zeros(len(value)), whole[:, 2]], axis=1)


def _nvfp4_scales(amax: Doubles, fmt: BlockFormat) -> Doubles:
    """The scale of the block that holds the amax, where the tensor has a scale too."""
    with np.errstate(divide="ignore", over="ignore"):
        largest = np.minimum(fmt.scale.max * fmt.element.max / amax, _FP32_MAX)
    scale = largest.astype(np.float32).astype(np.float64)
    scale = np.where(amax == 0, 1.0, np.where(scale == 0, _FP32_LEAST, scale))
    found: Doubles = scale / fmt.scale.max
    return found
