"""The CPU kernel for blocks: compiled loops over bit patterns, strips of rows over a few threads.

The same contract as `block_reference`, count for count.
"""

import math
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.stats import block_loops
from numwatch.stats.block_layout import BLOCK_KINDS, BLOCK_SIZES, BlockRow
from numwatch.stats.block_pieces import matrices
from numwatch.stats.cpu import Bits, bits_of
from numwatch.stats.dtypes import LAYOUTS
from numwatch.stats.threads import in_threads

_PART = 1 << 18
"""Fewest elements worth a thread of their own."""

_HEIGHT = math.lcm(*BLOCK_SIZES)
_OTHER = {"last": "across", "across": "last"}
_TURNED = [BLOCK_KINDS.index((size, _OTHER[direction])) for size, direction in BLOCK_KINDS]


def accumulate_blocks(x: Tensor, rows: Tensor) -> None:
    """Adds the blocks of x to rows int64 [BLOCK_ROWS, BLOCK_COLUMNS].

    Releases the interpreter's lock while it reads. One tensor's rows from one thread at a time.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    target = rows.numpy()
    for part, times in matrices(x, _HEIGHT):
        own = target if times == 1 else np.zeros_like(target)
        _add(part, own)
        if times > 1:
            target += own * times


def _add(x: Tensor, target: BlockRow) -> None:
    """Adds the blocks of a matrix."""
    if x.T.is_contiguous() and not x.is_contiguous():
        # Read as it lies in memory, each direction is the other's.
        turned = np.zeros_like(target)
        _sweep(x.T, turned)
        target += turned[_TURNED]
    else:
        _sweep(x.contiguous(), target)


def _sweep(x: Tensor, target: BlockRow) -> None:
    bits, columns = bits_of(x.view(-1)), x.shape[1]
    strips = -(-x.shape[0] // block_loops.STRIP)
    threads = min(torch.get_num_threads(), bits.size // _PART, strips)
    if threads <= 1:
        _sweep_part(x.dtype, bits, columns, target)
        return
    step = -(-strips // threads) * block_loops.STRIP * columns
    parts = [bits[start : start + step] for start in range(0, bits.size, step)]
    targets = [np.zeros_like(target) for _ in parts]
    tasks = zip(parts, targets, strict=True)
    in_threads([partial(_sweep_part, x.dtype, part, columns, own) for part, own in tasks])
    target += sum(targets)


def _sweep_part(dtype: torch.dtype, bits: Bits, columns: int, target: BlockRow) -> None:
    if dtype == torch.float32:
        block_loops.sweep_float32(bits, columns, target)
    elif dtype == torch.bfloat16:
        block_loops.sweep_bfloat16(bits, columns, target)
    elif dtype == torch.float16:
        block_loops.sweep_float16(bits, columns, target)
    else:
        block_loops.sweep_float8(bits, columns, target, _meanings(dtype))


@cache
def _meanings(dtype: torch.dtype) -> npt.NDArray[np.uint32]:
    """The FP32 pattern of each float8 code: every one is a normal value, zero or not finite."""
    layout = LAYOUTS[dtype]
    codes = torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype)
    magnitudes = [layout.magnitude(code) for code in range(layout.largest + 1)]
    patterns = np.full(256, 0x7FC0_0000, np.uint32)
    for sign in (0, 128):
        patterns[sign : sign + len(magnitudes)] = np.array(magnitudes, np.float32).view(np.uint32)
    patterns[codes.isnan().numpy()] = 0x7FC0_0000
    return patterns
