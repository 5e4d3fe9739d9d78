"""Expanded tensors: their memory holds each element once, their shape has it many times."""

from math import prod

import torch
from torch import Tensor

from numwatch.stats.layout import CALLS, COUNTS, REALS, SUM
from numwatch.stats.prepare import plain
from numwatch.stats.rows import merge_rows


def once(x: Tensor) -> tuple[Tensor, int]:
    """Returns what of x is left without its repetitions, and how often x has each element of it.

    Raises:
        NotWatchedError: See `prepare.plain`.
    """
    x = plain(x)
    if x.layout is not torch.strided or not x.numel():
        return x, 1
    repeated = [dim for dim, step in enumerate(x.stride()) if step == 0]
    times = prod(x.shape[dim] for dim in repeated)
    for dim in repeated:
        x = x.narrow(dim, 0, 1)
    return x, times


def merge_times(
    counts: Tensor, reals: Tensor, row: int, more_counts: Tensor, more_reals: Tensor, times: int
) -> None:
    """Adds a row [1, COUNTS] and [1, REALS], as if seen so often in one call, to one of many.

    The row that is added is scaled in place.
    """
    calls = more_counts[:, CALLS].clone()
    more_counts *= times
    more_counts[:, CALLS] = calls
    more_reals[:, SUM:] *= times
    own = slice(row, row + 1)
    merge_rows(counts.view(-1, COUNTS)[own], reals.view(-1, REALS)[own], more_counts, more_reals)
