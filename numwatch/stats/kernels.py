"""Chooses the kernel: numba on a CPU where numba works, else the reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

from numwatch.stats import reference
from numwatch.stats.block_kernel import count_blocks
from numwatch.stats.dtypes import WATCHED_DTYPES, dtype_name
from numwatch.stats.layout import new_rows, unpack_row
from numwatch.stats.prepare import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from numwatch.stats.tensor_stats import TensorStats


class Kernel(Protocol):
    """What every kernel offers; see `reference`."""

    def accumulate(self, x: Tensor, counts: Tensor, reals: Tensor) -> None:
        """Adds all that x shows to one row."""

    def accumulate_amax(self, x: Tensor, counts: Tensor, reals: Tensor) -> None:
        """Adds x's numel and finite amax alone to one row."""


def accumulate(x: Tensor, counts: Tensor, reals: Tensor) -> None:
    """Adds what x shows to one row, int64 [COUNTS] and float64 [REALS] on x's device.

    Does not synchronise with a GPU and leaves autograd alone. Rows may be written from several
    threads at once, one row from one thread at a time.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    (_cpu_kernel() if x.device.type == "cpu" else reference).accumulate(x, counts, reals)


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor) -> None:
    """Adds x's numel and its finite amax alone to one row; see `accumulate`."""
    (_cpu_kernel() if x.device.type == "cpu" else reference).accumulate_amax(x, counts, reals)


def warm_up(dtypes: Sequence[torch.dtype] = WATCHED_DTYPES) -> None:
    """Compiles the CPU kernels for these dtypes ahead of time, so that no training step waits."""
    counts, reals = new_rows(1)
    for dtype in dtypes:
        x = torch.zeros(1, dtype=dtype)
        accumulate(x, counts[0], reals[0])
        accumulate_amax(x, counts[0], reals[0])


def tensor_stats(x: Tensor, *, blocks: Sequence[int] = ()) -> TensorStats:
    """Returns the statistics of a tensor: any float dtype, shape, layout or device.

    Args:
        x: The tensor; of a DTensor the local shard is taken.
        blocks: Block sizes for which to count how far elements lie below their block's amax,
            blocks running along the last dimension.

    Raises:
        NotWatchedError: If x holds integers, bools or complex numbers, or no data.
    """
    x = plain(x)
    counts, reals = new_rows(1, x.device)
    accumulate(x, counts[0], reals[0])
    stats = unpack_row(counts[0].cpu().numpy(), reals[0].cpu().numpy(), dtype_name(x.dtype))
    return replace(stats, blocks=count_blocks(x, blocks)) if blocks else stats


@cache
def _cpu_kernel() -> Kernel:
    try:
        from numwatch.stats import cpu

        counts, reals = new_rows(1)
        cpu.accumulate(torch.zeros(1), counts[0], reals[0])
    except Exception as error:  # noqa: BLE001 - numba fails in many ways
        warnings.warn(
            f"numwatch takes its slow CPU kernel, since numba does not work here ({error}); "
            "reinstall numba to fix this",
            RuntimeWarning,
            stacklevel=2,
        )
        return reference
    return cpu
