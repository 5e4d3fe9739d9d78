"""Block by block counts: plain torch operations, any device, taken on demand only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from numwatch.errors import NumwatchError
from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.blocks import BlockCounts, BlockHistogram
from numwatch.stats.prepare import plain
from numwatch.stats.widen import widened

_NONE = BINADE_MIN - 1
"""Stands for the binade of zeros, of non-finite elements and of padding."""


def count_blocks(x: Tensor, sizes: Sequence[int]) -> BlockCounts:
    """Returns how far the elements of x lie below their block's amax, for several block sizes.

    Blocks run along the last dimension; the last one of a line may be shorter. Zeros and non-finite
    elements belong to their block and are not counted.

    Raises:
        NotWatchedError: See `prepare.dense`.
        NumwatchError: If a size is less than 1.
    """
    if any(size < 1 for size in sizes):
        raise NumwatchError(f"block sizes are 1 or more; got {tuple(sizes)}")
    x = plain(x)
    x = x if x.layout is torch.strided else x.to_dense()
    binades = _binades(x if x.dim() else x.reshape(1))
    return BlockCounts(tuple(_histogram(binades, size) for size in sorted(set(sizes))))


def _binades(x: Tensor) -> Tensor:
    values = widened(x.resolve_neg())
    magnitude = values.view(torch.int64) & 0x7FFF_FFFF_FFFF_FFFF
    exponents = ((magnitude >> 52) - 1023).clamp(BINADE_MIN, BINADE_MAX)
    return exponents.where((magnitude > 0) & values.isfinite(), _NONE)


def _histogram(binades: Tensor, size: int) -> BlockHistogram:
    ragged = -binades.shape[-1] % size
    blocks = torch.nn.functional.pad(binades, (0, ragged), value=_NONE).reshape(-1, size)
    # A zero-length tensor has no maximum to reduce to.
    tops = blocks.amax(dim=1) if blocks.numel() else blocks.new_empty(0)
    depths = (tops[:, None] - blocks)[blocks != _NONE]
    filled = tops[tops != _NONE]
    first = int(filled.min()) if filled.numel() else 0
    return BlockHistogram(
        size=size,
        blocks=filled.numel(),
        zero_blocks=tops.numel() - filled.numel(),
        below=tuple(depths.bincount().tolist()),
        amax_first=first,
        amaxes=tuple((filled - first).bincount().tolist()),
    )
