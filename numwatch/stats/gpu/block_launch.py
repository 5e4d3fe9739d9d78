"""The GPU kernel for blocks: the same contract as `block_reference`, count for count."""

import torch
from torch import Tensor

from numwatch.stats import block_reference
from numwatch.stats.block_layout import BLOCK_KINDS
from numwatch.stats.gpu.blocks import HEIGHT, WIDTH, count_tile
from numwatch.stats.gpu.launch import FUSED, bit_layout, on
from numwatch.stats.prepare import matrix


def accumulate_blocks(x: Tensor, rows: Tensor) -> None:
    """Adds the blocks of x to rows int64 [BLOCK_ROWS, BLOCK_COLUMNS] on x's device.

    Reads a matrix of any strides in place. Of FP64, which no kernel here takes, as the reference.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    x = matrix(x)
    if not x.numel():
        return
    if x.dtype == torch.float64:
        block_reference.accumulate_blocks(x, rows, BLOCK_KINDS)
        return
    # Read as it lies in memory, each direction is the other's.
    turned = x.stride(0) < x.stride(1)
    x = x.T if turned else x
    height, width = x.shape
    with on(x.device):
        count_tile[(-(-height // HEIGHT) * -(-width // WIDTH),)](
            x.data_ptr(),
            height,
            width,
            x.stride(0),
            x.stride(1),
            rows,
            TURNED=turned,
            **bit_layout(x.dtype),
            **FUSED,
        )
