"""Blocks that share one scale with others beside them: what only their own amaxes are known of.

They are taken as independent of each other, as those of noise are. Where blocks of like amaxes lie
together fewer elements are lost than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from numwatch.stats.predict import spread_points
from numwatch.stats.predict_mx import MANTISSAS

if TYPE_CHECKING:
    from numwatch.stats.blocks import BlockHistogram
    from numwatch.stats.tensor_stats import TensorStats

Floats = npt.NDArray[np.float64]


def joined_flushed(
    stats: TensorStats, blocks: BlockHistogram, alone: float, times: int, ratio: float
) -> float:
    """Returns the estimated share flushed where so many blocks share the largest one's scale.

    An element x survives if all their amaxes are below ratio * |x|. What that makes of the share
    kept, from one block to several, is applied to what is known to be kept by one.

    Args:
        stats: What the tensor looked like; it has elements.
        blocks: Counts of blocks with a scale each.
        alone: The share these flush.
        times: How many share a scale.
        ratio: amax / |x| from which on x is flushed.
    """
    points, counts = spread_points(stats)
    below = _share_below(blocks, np.log2(points * ratio))
    by_one, by_all = float(counts @ below), float(counts @ below**times)
    # Below the lowest binade nothing is known of amaxes.
    return 1 - (1 - alone) * by_all / by_one if by_one else alone


def _share_below(blocks: BlockHistogram, levels: Floats) -> Floats:
    """Share of blocks whose amax is below 2^level: log-uniform between the edges of classes.

    Of a binade's blocks as many are of a class as of their elements.
    """
    one, *others = np.array(blocks.elements, np.float64)
    classes = np.array([one + others[0], *others[1:]])  # a power of two is no class's width
    elements = np.maximum(classes.sum(axis=0), 1)
    counts = (classes / elements * np.array(blocks.amaxes)).T.ravel()
    starts = blocks.amax_first + np.arange(len(blocks.amaxes))
    edges = (starts[:, None] + np.log2(MANTISSAS[1:])).ravel()
    reached = np.cumsum([blocks.zero_blocks, *counts])
    below: Floats = np.interp(levels, [starts[0], *edges], reached / reached[-1])
    return below
