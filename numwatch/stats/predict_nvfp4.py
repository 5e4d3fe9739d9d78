"""What NVFP4 would do to a tensor, from its block counts: shares with exact bounds.

A block's scale, v = amax * S / 6 with the tensor's scale S, is rounded to E4M3, which moves what
E2M1 meets by rho = v / E4M3(v). Of normal v, rho is within [17/18, 17/16]: elements up to
amax / 25.5 are flushed and beyond amax / 22.67 none is, and both are counted. Of subnormal v rho is
within [1/2, 3/2]; of v <= 2^-10 the scale is 0 and the block vanishes.

Where several counted blocks share a scale, as those of 1x16 in one of 16x16, theirs is at least
what each would have had alone, and never below 2^-9 unless it is 0. So what a scale of its own
flushes is flushed, but that a block which would have vanished may be kept: of it only what is
`deep`, or below 2^-11 / S, is sure to be lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from numwatch.formats import FORMATS, get_block_format
from numwatch.formats.nearest import round_nearest
from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.block_layout import FLUSHED_FROM, SCALE_STEP, SLACK
from numwatch.stats.bounded import Bounded
from numwatch.stats.derived import flushed
from numwatch.stats.predict_joined import joined_flushed
from numwatch.stats.predict_mx import share_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numwatch.stats.blocks import BlockHistogram
    from numwatch.stats.tensor_stats import TensorStats

_FORMAT = get_block_format("nvfp4")
_SURELY_FLUSHED = 7
"""Depth from which on amax / |x| >= 64: flushed whatever rho; from 24 * 3/2 on would do."""
_SURELY_KEPT = 3
"""Depth down to which amax / |x| < 8: kept whatever rho; down from 24 / 2 would do."""
_SURELY_NOT_SATURATED = 2
"""Depth from which on amax / |x| >= 2 and no scale is rounded down so far."""
_POINTS = 4096


def tensor_scale(stats: TensorStats) -> float:
    """Returns S of a tensor whose elements are finite: min(448 * 6 / amax, FP32's max).

    0 where FP32 has none so small: amaxes beyond FP32's.
    """
    if stats.amax == 0.0:
        return 1.0
    largest = _FORMAT.scale.max * _FORMAT.element.max
    return float(np.float32(min(largest / stats.amax, FORMATS["fp32"].max)))


def nvfp4_shares(
    stats: TensorStats, blocks: BlockHistogram, times: int = 1
) -> tuple[Bounded, Bounded]:
    """Returns the shares that become zero, whole vanishing blocks among them, and that saturate.

    Over the elements counted. Saturated is what lies above 6 before rounding: only because the
    block's scale was rounded down, by 1/16 at most where it is normal.

    Args:
        stats: What the tensor looked like.
        blocks: Its blocks of 16.
        times: How many of them share a scale, at most.
    """
    total = blocks.nonzeros
    if not total:
        return Bounded.exactly(0.0), Bounded.exactly(0.0)
    scale = tensor_scale(stats)
    if not scale:
        return Bounded(0.0, 0.0, 1.0), Bounded(0.0, 0.0, 1.0)
    kinds = _Kinds.of(stats, blocks)
    unsure = kinds.perhaps + kinds.subnormal
    depths = blocks.depths
    sure = sum(depths[_SURELY_FLUSHED:])
    # No block's scale is above the largest, nor, but for 0, below the smallest.
    most = _FORMAT.scale.max * SLACK
    least = _FORMAT.scale.smallest_subnormal / SLACK
    low = max(
        sure,
        blocks.deep - unsure,
        round(flushed(stats, _FORMAT.element, scale / least).low * total),
    )
    high = min(
        round(flushed(stats, _FORMAT.element, scale / most).high * total),
        # What has a scale keeps its amax.
        total - -(-kinds.surviving_blocks // times),
    )
    if times == 1:
        low = max(low, kinds.vanished)
        high = min(
            high,
            kinds.vanished + unsure + min(blocks.edge, kinds.normal),
            # And elements a little below it.
            total - _shallow(blocks) + kinds.vanished + kinds.perhaps,
        )
    alive = total - kinds.vanished - kinds.perhaps / 2
    value = total - alive + alive * (blocks.deep + blocks.edge) / (2 * total)
    if times > 1:
        value = total * joined_flushed(stats, blocks, value / total, times, FLUSHED_FROM)
    near = blocks.near + min(unsure, sum(depths[:_SURELY_NOT_SATURATED]))
    rounded_down, reached = _saturation()
    beside = max(blocks.near - blocks.blocks, 0)
    above = (rounded_down * kinds.surviving_blocks + reached * beside) / times
    return (
        share_of([Bounded.within(value, low, max(low, high))], total),
        share_of([Bounded.within(above, 0.0, min(near, total))], total),
    )


@dataclass(frozen=True)
class _Kinds:
    """Elements by what becomes of their block's scale.

    Attributes:
        vanished: It is 0.
        perhaps: It may be 0: the cut lies within the binade of the amax.
        subnormal: It is a subnormal of E4M3, or may be one.
        normal: It is normal.
        surviving_blocks: Blocks of the last two kinds: each keeps its amax.
    """

    vanished: int
    perhaps: int
    subnormal: int
    normal: int
    surviving_blocks: int

    @classmethod
    def of(cls, stats: TensorStats, blocks: BlockHistogram) -> _Kinds:
        scale, six = tensor_scale(stats), _FORMAT.element.max
        vanished = perhaps = subnormal = normal = surviving = 0
        for low, high, n, elements in _binades(stats, blocks):
            if high * scale / six <= _FORMAT.scale.flush_threshold:
                vanished += elements
            elif low * scale / six <= _FORMAT.scale.flush_threshold:
                perhaps += elements
            elif low * scale / six < _FORMAT.scale.smallest_normal:
                subnormal += elements
                surviving += n
            else:
                normal += elements
                surviving += n
        return cls(vanished, perhaps, subnormal, normal, surviving)


def _shallow(blocks: BlockHistogram) -> int:
    """Elements surely up to so few binades below their amax, at least.

    Not those of blocks that reach the ends of the binades, where the deep look shallow.
    """
    ends = (*range(BINADE_MIN, BINADE_MIN + _SURELY_KEPT), BINADE_MAX)
    elements = enumerate(blocks.elements_by_binade, blocks.amax_first)
    unsure = sum(count for binade, count in elements if binade in ends)
    return max(sum(blocks.depths[:_SURELY_KEPT]) - unsure, 0)


def _binades(stats: TensorStats, blocks: BlockHistogram) -> Iterator[tuple[float, float, int, int]]:
    """The least and largest amax that blocks of each binade may have, blocks and elements."""
    counts = zip(blocks.amaxes, blocks.elements_by_binade, strict=True)
    for binade, (n, elements) in enumerate(counts, blocks.amax_first):
        low = 0.0 if binade == BINADE_MIN else math.ldexp(1.0, binade)
        high = math.inf if binade == BINADE_MAX else math.ldexp(1.0, binade + 1)
        yield max(low, stats.amin), min(high, stats.amax), n, elements


@cache
def _saturation() -> tuple[float, float]:
    """Share of log-uniform scales rounded down, and of the elements near the amax those then reach.

    Elements near it are taken as log-uniform between amax / 1.0625 and it.
    """
    scales = np.geomspace(1.0, 2.0, _POINTS, endpoint=False)
    rho = scales / round_nearest(scales, _FORMAT.scale)
    reached = np.log(np.maximum(rho, 1.0)) / math.log(SCALE_STEP)
    return float((rho > 1).mean()), float(reached.mean())
