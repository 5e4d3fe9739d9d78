"""A tensor as matrices whose rows make whole blocks, with no copy of what need not be copied."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from numwatch.stats.prepare import plain

_AT_ONCE = 1 << 22
"""Elements copied at a time, where a tensor does not lie as a matrix."""


def matrices(x: Tensor, height: int) -> Iterator[tuple[Tensor, int]]:
    """Yields matrices [rows, last dimension] that are x's rows, and how often x has each.

    Args:
        x: Any tensor of a watched dtype.
        height: Rows that no cut may part: each matrix has a multiple, those at ends excepted.

    Raises:
        NotWatchedError: See `prepare.plain`.
    """
    x = plain(x)
    x = x if x.layout is torch.strided else x.to_dense()
    x = x.resolve_neg()
    if not x.numel():
        return
    if x.dim() < 2:  # noqa: PLR2004
        yield x.reshape(1, -1), 1
        return
    whole = _viewed(x)
    if whole is not None and (whole.is_contiguous() or whole.T.is_contiguous()):
        yield whole, 1
    else:
        yield from _pieces(x if whole is None else whole, height)


def _viewed(x: Tensor) -> Tensor | None:
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        return None


def _pieces(x: Tensor, height: int) -> Iterator[tuple[Tensor, int]]:
    n, rows = x.shape[0], math.prod(x.shape[1:-1])
    step = height // math.gcd(rows, height)  # so many slices make whole blocks
    if n == 1 and x.dim() > 2:  # noqa: PLR2004
        yield from _pieces(x[0], height)
    elif x.stride(0) == 0 and n > step:
        for part, times in _pieces(x[:step], height):
            yield part, times * (n // step)
        if n % step:
            yield from _pieces(x[: n % step], height)
    elif step == 1 and x.dim() > 2 and x[0].numel() > _AT_ONCE:  # noqa: PLR2004
        for part in x:
            yield from _pieces(part, height)
    else:
        step *= max(1, _AT_ONCE // (step * x[0].numel()))
        for part in x.split(step):
            yield part.reshape(-1, x.shape[-1]), 1
