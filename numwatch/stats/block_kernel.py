"""Counts blocks: compiled on a CPU by numba, on a GPU by Triton, else by the reference."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from numwatch.errors import NumwatchError
from numwatch.stats import block_reference, on_gpu
from numwatch.stats.block_layout import BLOCK_COLUMNS, BLOCK_KINDS, unpack_block_row
from numwatch.stats.blocks import BlockCounts
from numwatch.stats.compiled import WrongCountsError, is_news
from numwatch.stats.dtypes import dtype_name, every_kind, is_watched_dtype
from numwatch.stats.prepare import plain
from numwatch.stats.rows import new_block_rows

Sweep = Callable[[Tensor, Tensor], None]


def accumulate_blocks(x: Tensor, rows: Tensor) -> None:
    """Adds the blocks of x to rows int64 [BLOCK_ROWS, BLOCK_COLUMNS] on x's device.

    Does not synchronise with a GPU and leaves autograd alone. On a CPU large tensors are split over
    a few threads.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    x = plain(x)
    if x.device.type == "cpu":
        sweep = _cpu_sweep(x.dtype)
    else:
        sweep = on_gpu.accumulate_blocks if x.device.type == "cuda" else _reference
    sweep(x, rows)


def count_blocks(x: Tensor, sizes: Sequence[int]) -> BlockCounts:
    """Returns the blocks of x of several sizes, along the last dimension and across.

    Raises:
        NotWatchedError: See `prepare.dense`.
        NumwatchError: If a size is less than 1.
    """
    if any(size < 1 for size in sizes):
        raise NumwatchError(f"block sizes are 1 or more; got {tuple(sizes)}")
    x = plain(x)
    kinds = [(size, direction) for size in sorted(set(sizes)) for direction in ("across", "last")]
    if {size for size, _ in kinds} <= {size for size, _ in BLOCK_KINDS}:
        rows = new_block_rows(1, x.device)[0]
        accumulate_blocks(x, rows)
        found = dict(zip(BLOCK_KINDS, rows.cpu().numpy(), strict=True))
    else:
        rows = torch.zeros(len(kinds), BLOCK_COLUMNS, dtype=torch.int64, device=x.device)
        block_reference.accumulate_blocks(x, rows, kinds)
        found = dict(zip(kinds, rows.cpu().numpy(), strict=True))
    return BlockCounts(tuple(unpack_block_row(found[kind], *kind) for kind in kinds))


def _reference(x: Tensor, rows: Tensor) -> None:
    block_reference.accumulate_blocks(x, rows, BLOCK_KINDS)


@cache
def _cpu_sweep(dtype: torch.dtype) -> Sweep:
    """The loops for a dtype, compiled and checked when the dtype is first met."""
    if not is_watched_dtype(dtype) or dtype == torch.float64:
        return _reference
    try:
        from numwatch.stats import block_cpu

        sweep: Sweep = block_cpu.accumulate_blocks
        _check(sweep, dtype)
    except Exception as error:  # noqa: BLE001 - numba fails in many ways
        if is_news(error):
            warnings.warn(
                f"numwatch counts blocks slowly, since numba does not work here "
                f"({dtype_name(dtype)}: {error}); delete the __pycache__ folders of numwatch or "
                "reinstall numba to fix this",
                RuntimeWarning,
                stacklevel=3,
            )
        return _reference
    return sweep


def _check(sweep: Sweep, dtype: torch.dtype) -> None:
    """Raises RuntimeError unless a sweep counts as the reference does; see `kernels._check`."""
    x = every_kind(dtype)
    x = x[: x.numel() // 7 * 7].view(7, -1)
    rows, expected = new_block_rows(2)
    sweep(x, rows)
    _reference(x, expected)
    if not torch.equal(rows, expected):
        raise WrongCountsError("its loops count wrongly, perhaps from a stale cache")
