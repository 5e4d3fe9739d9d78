"""What formats that scale a tensor in parts would do to it, from its block counts.

The counts must be those of the tensor that `stats` tells of. Both may be of several tensors merged:
then NVFP4, which looks at the whole tensor's amax, is predicted as if they were one. Non-finite
elements are left out, as if they were zeros.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS, BlockFormat, Format, get_block_format, get_format
from numwatch.formats.mx_exponents import mx_exponents
from numwatch.stats import predict
from numwatch.stats.block_layout import SLACK
from numwatch.stats.bounded import Bounded
from numwatch.stats.derived import flushed
from numwatch.stats.predict_block_errors import (
    Points,
    median_of,
    mx_points,
    nvfp4_points,
    sqnr_of,
)
from numwatch.stats.predict_mx import MANTISSAS, Raise, exponent, flushed_by, mx_shares, share_of
from numwatch.stats.predict_nvfp4 import nvfp4_shares, tensor_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numwatch.formats import ScaleRule
    from numwatch.stats.blocks import BlockHistogram
    from numwatch.stats.tensor_stats import TensorStats

_COUNTED = 32
"""Size of the largest blocks that are counted."""
LEAST_AMAX = 1e-12
"""Row scales take smaller amaxes for it: torchao's `EPS`."""
LARGEST_SCALE = 2.0**127
"""Of E8M0: larger amaxes may be clipped whatever the rule."""


def block_shares(
    stats: TensorStats,
    blocks: BlockHistogram | None,
    fmt: str | BlockFormat,
    rule: ScaleRule | None = None,
    *,
    half: BlockHistogram | None = None,
) -> tuple[Bounded, Bounded]:
    """Returns the shares of the finite non-zero elements that become zero, and that saturate.

    As `numwatch.formats.round_to_block_format` rounds; saturated is above the element's largest
    value before rounding. MX and NVFP4 from blocks of their own size, see `mx_shares` and
    `nvfp4_shares`, which answers for NVFP4 in blocks of 16x16 too. Block FP8, whose blocks are
    larger than any counted, flushes at least what its rule would in the smaller ones and at most
    what it would with one scale for the tensor; it never saturates. Its estimate goes by the
    logarithm of the size: from the smaller blocks to the tensor, or, for blocks of one row, on from
    what `half` and the counted size differ by.

    Args:
        stats: What the tensor looked like.
        blocks: Its block counts in the direction blocks run along; without them the bounds are
            those of one scale for the tensor.
        fmt: The format.
        rule: How MX chooses a block's exponent, `floor` by default.
        half: Counts of blocks half as large, for block FP8.

    Raises:
        NumwatchError: The counts are of blocks of another size than the format's.
    """
    fmt = get_block_format(fmt)
    _check_size(blocks, fmt)
    if fmt.tensor_scale:
        if blocks is not None:
            return nvfp4_shares(stats, blocks, fmt.block_size // blocks.size)
        whole = flushed(stats, fmt.element, _largest_scale(stats, fmt) / SLACK)
        return _unseen(stats, whole, fmt.block_size), Bounded(0.0, 0.0, 1.0)
    rule = (rule or "floor") if fmt.is_mx else "rceil"
    whole = flushed(stats, fmt.element, _whole_scale(stats, fmt.element, rule))
    if blocks is None:
        clips = rule in ("floor", "even") or stats.amax >= LARGEST_SCALE
        return _unseen(stats, whole, fmt.block_size), Bounded(0.0, 0.0, float(clips))
    shares = mx_shares(stats, blocks, fmt.element, rule)
    if fmt.block_size == blocks.size:
        return shares
    between = _between(stats, shares[0], whole, fmt.block_size)
    if half is not None and fmt.block[0] == 1:
        growth = shares[0].value - mx_shares(stats, half, fmt.element, rule)[0].value
        value = shares[0].value + max(growth, 0.0) * math.log2(fmt.block_size / _COUNTED)
        between = Bounded.within(value, between.low, between.high)
    times = fmt.block_size // blocks.size
    return between, Bounded.within(shares[1].value / times, 0.0, shares[1].high)


def row_shares(
    stats: TensorStats,
    blocks: BlockHistogram | None,
    fmt: str | Format,
    *,
    power_of_two: bool = False,
    length: int | None = None,
) -> tuple[Bounded, Bounded]:
    """Returns the shares that become zero and saturate where each row has a scale of its own.

    The scale takes the row's amax to the format's largest value. Flushed is at least what blocks of
    32 would flush so, and at most what one scale for the tensor would. What FP32's rounding of the
    scale may put above the largest value is not counted as saturated.

    Args:
        stats: What the tensor looked like.
        blocks: Its block counts in the direction of the rows, or None.
        fmt: Format of the elements.
        power_of_two: Whether scales are rounded down to powers of two.
        length: Elements in a row; by default those of a square.
    """
    fmt = get_format(fmt)
    scale = _row_scale(stats, fmt, power_of_two=power_of_two)
    if not scale:
        return Bounded(0.0, 0.0, 1.0), Bounded(0.0, 0.0, 1.0)
    whole = flushed(stats, fmt, scale if power_of_two else scale / SLACK)
    if blocks is None:
        return _unseen(stats, whole, length or _row_length(stats)), Bounded.exactly(0.0)
    if power_of_two:
        parts, _ = mx_shares(stats, blocks, fmt, "rceil")
    else:
        parts = _parts_at_their_amax(blocks, fmt)
    return _between(stats, parts, whole, length or _row_length(stats)), Bounded.exactly(0.0)


def block_errors(
    stats: TensorStats,
    blocks: BlockHistogram | None,
    fmt: str | BlockFormat,
    rule: ScaleRule | None = None,
) -> tuple[float, float]:
    """Returns the median of |rounded - x| / |x|, and the SQNR in dB, predicted.

    Of arguments and errors see `block_shares`. A flushed element has the error 1. The tensor must
    be finer than the format. Where a few elements hold most of the signal the SQNR is theirs, and
    counts tell it to several dB only. NaN where there are no elements.
    """
    fmt = get_block_format(fmt)
    _check_size(blocks, fmt)
    if fmt.tensor_scale:
        scale = _largest_scale(stats, fmt)
        parts = None if blocks is None else nvfp4_points(stats, blocks)
    else:
        rule = (rule or "floor") if fmt.is_mx else "rceil"
        scale = _whole_scale(stats, fmt.element, rule)
        parts = None if blocks is None else mx_points(blocks, fmt.element, rule)
    return _mixed_errors(stats, blocks, parts, fmt.element, scale, fmt.block_size)


def row_errors(
    stats: TensorStats,
    blocks: BlockHistogram | None,
    fmt: str | Format,
    *,
    power_of_two: bool = False,
    length: int | None = None,
) -> tuple[float, float]:
    """Returns the median relative error and the SQNR in dB, predicted; see `row_shares`."""
    fmt = get_format(fmt)
    scale = _row_scale(stats, fmt, power_of_two=power_of_two)
    if not scale:
        return math.nan, math.nan
    parts = None if blocks is None else mx_points(blocks, fmt, "rceil")
    return _mixed_errors(stats, blocks, parts, fmt, scale, length or _row_length(stats))


def _check_size(blocks: BlockHistogram | None, fmt: BlockFormat) -> None:
    wanted = min(fmt.block[1], _COUNTED)
    if blocks is not None and blocks.size != wanted:
        raise NumwatchError(
            f"{fmt.name} is predicted from blocks of {wanted}; got those of {blocks.size}"
        )


def _largest_scale(stats: TensorStats, fmt: BlockFormat) -> float:
    """The scale of the block that holds the amax, where the tensor has a scale too."""
    return (tensor_scale(stats) or FORMATS["fp32"].smallest_subnormal) / fmt.scale.max


def _whole_scale(stats: TensorStats, element: Format, rule: ScaleRule) -> float:
    """The scale that an MX rule would give the tensor as one block."""
    return math.ldexp(1.0, -int(mx_exponents(np.float64(stats.amax), element, rule)))


def _row_scale(stats: TensorStats, fmt: Format, *, power_of_two: bool) -> float:
    """The scale of a row that holds the tensor's amax; 0 where FP32 has none so small or large."""
    with np.errstate(over="ignore"):
        scale = float(np.float32(fmt.max / max(stats.amax, LEAST_AMAX)))
    scale = scale if math.isfinite(scale) else 0.0
    return math.ldexp(1.0, exponent(scale)) if power_of_two and scale else scale


def _row_length(stats: TensorStats) -> int:
    """A guess: that of a square."""
    return math.isqrt(stats.numel)


def _parts_at_their_amax(blocks: BlockHistogram, fmt: Format) -> Bounded:
    """Share flushed where each block's amax stands at the largest value."""
    reach = fmt.flush_threshold / fmt.max
    counts = []
    for k, below in enumerate(blocks.below):
        least, most = MANTISSAS[max(k - 1, 0)], MANTISSAS[k]
        # Elements of depth d are up to 2^(1 - d), with the block's binade for unit.
        surely = 1 - exponent(reach * least / SLACK)
        perhaps = 1 - exponent(reach * most * SLACK) - 1
        lift = Raise(0, surely - perhaps, 0.5)
        counts.append(flushed_by(below, surely - 1, lift))
    return share_of(counts, blocks.nonzeros)


def _between(stats: TensorStats, parts: Bounded, whole: Bounded, size: int) -> Bounded:
    """At least what smaller parts lose and at most what the whole loses.

    In between the share grows by a factor with each doubling of the size: so do tails.
    """
    weight = _weight(stats, size, _COUNTED)
    least = 0.5 / max(stats.nonzeros, 1)
    one, other = max(parts.value, least), max(whole.value, least)
    value = one ** (1 - weight) * other**weight if whole.value else parts.value
    return Bounded.within(value, parts.low, max(whole.high, parts.low))


def _unseen(stats: TensorStats, whole: Bounded, size: int) -> Bounded:
    """At most what the whole loses; a part of one element would lose nothing."""
    share = math.log(size) / math.log(max(stats.numel, size, 2)) if size > 1 else 0.0
    return Bounded.within(whole.value * share, 0.0, whole.high)


def _weight(stats: TensorStats, size: int, counted: int) -> float:
    """Where a part of this size stands between a counted block and the tensor, in log size."""
    if size == counted:
        return 0.0
    span = math.log(max(stats.numel, 1) / counted)
    return min(max(math.log(max(size, 1) / counted) / span, 0.0), 1.0) if span > 0 else 1.0


def _mixed_errors(
    stats: TensorStats,
    blocks: BlockHistogram | None,
    parts: Sequence[Points] | None,
    fmt: Format,
    scale: float,
    size: int,
) -> tuple[float, float]:
    """Errors of parts of this size, between those of the counted blocks and those of the whole."""
    if blocks is None or parts is None:
        return predict.median_relative_error(stats, fmt, scale), predict.sqnr(stats, fmt, scale)
    weight = _weight(stats, size, blocks.size)
    if not weight or not parts:
        return median_of(parts), sqnr_of(parts, stats, blocks)
    x, count, error = predict.rounded_points(stats, fmt, scale)
    relative = [(part.error / part.x, part.count * (1 - weight)) for part in parts]
    values, counts = zip(*relative, (error / x, count * weight), strict=True)
    median = predict.weighted_median(np.concatenate(values), np.concatenate(counts))
    ours, theirs = sqnr_of(parts, stats, blocks), predict.sqnr(stats, fmt, scale)
    return median, ours + weight * (theirs - ours) if math.isfinite(ours - theirs) else ours
