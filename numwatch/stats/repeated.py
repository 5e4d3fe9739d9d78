"""Expanded tensors: their memory holds each element once, their shape has it many times."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from numwatch.stats.layout import CALLS, COUNTS, REALS, SUM
from numwatch.stats.prepare import plain
from numwatch.stats.rows import merge_rows, new_rows

Add = Callable[[Tensor, Tensor, Tensor, int], object]
"""Adds a tensor to one of the rows int64 [n, COUNTS] and float64 [n, REALS]."""


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


def add_repeated(add: Add, x: Tensor, counts: Tensor, reals: Tensor, row: int) -> Tensor | None:
    """Adds a tensor that repeats its elements to a row, as many times; returns any other tensor.

    Args:
        add: Adds one that does not.
        x: The tensor.
        counts: int64 [n, COUNTS].
        reals: float64 [n, REALS].
        row: Which of the n rows.

    Raises:
        NotWatchedError: See `prepare.plain`.
    """
    x, times = once(x)
    if times == 1:
        return x
    more_counts, more_reals = new_rows(1, x.device)
    add(x, more_counts, more_reals, 0)
    calls = more_counts[:, CALLS].clone()
    more_counts *= times
    more_counts[:, CALLS] = calls
    more_reals[:, SUM:] *= times
    own = slice(row, row + 1)
    merge_rows(counts.view(-1, COUNTS)[own], reals.view(-1, REALS)[own], more_counts, more_reals)
    return None
