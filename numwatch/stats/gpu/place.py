"""Where a tensor's elements lie, so that a kernel can read them there without a copy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from numwatch.stats.prepare import dense, plain

FLAT, ROWS, STEPS = range(3)
"""How a tensor is walked: one element after another; in rows, apart from each other, that whole
vector loads fit in; in rows and steps of any length."""

ALIGNMENT = 16
"""Bytes of a vector load."""


@dataclass(frozen=True)
class Place:
    """The elements of a tensor, at places [first, last) from an aligned address.

    Place p of a walk that is not FLAT lies at element p // columns * row_step + p % columns *
    column_step.

    Attributes:
        tensor: What lies there; to be kept until the kernel is launched.
        address: A multiple of ALIGNMENT, at or before the first element.
        first: Elements between the address and the first one; 0 unless FLAT.
        last: The end.
        left_out: Zeros that are stored nowhere.
        walk: FLAT, ROWS or STEPS.
        columns: Places in a row.
        row_step: Elements from one row to the next.
        column_step: Elements from one column to the next.
    """

    tensor: Tensor
    address: int
    first: int
    last: int
    left_out: int = 0
    walk: int = FLAT
    columns: int = 1
    row_step: int = 0
    column_step: int = 0


def load_width(itemsize: int) -> int:
    """Returns how many elements a thread loads at once: 16 bytes, of float8 eight."""
    return min(ALIGNMENT // itemsize, 8)


def place(x: Tensor) -> Place:
    """Returns where x's elements lie: in place if they make at most two strided dimensions.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    x, left_out = plain(x), 0
    if x.layout is not torch.strided or x.is_neg():
        x, left_out = dense(x)
    dims = collapsed(x.shape, x.stride())
    if len(dims) > 2:  # noqa: PLR2004
        x, _ = dense(x)
        dims = collapsed(x.shape, x.stride())
    address, numel = x.data_ptr(), x.numel()
    if dims in ([], [(numel, 1)]) or not numel:
        before = address % ALIGNMENT
        first = before // x.itemsize
        return Place(x, address - before, first, first + numel, left_out)
    (_, row_step), (columns, column_step) = [(1, 0), *dims][-2:]
    width = load_width(x.itemsize)
    whole = column_step == 1 and columns % width == 0 and row_step % width == 0
    walk = ROWS if whole and address % ALIGNMENT == 0 else STEPS
    return Place(x, address, 0, numel, left_out, walk, columns, row_step, column_step)


def collapsed(shape: torch.Size, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns the fewest dimensions, size and stride of each, that hold the same elements.

    Largest stride first, as memory is read, and before it what is repeated (stride 0).
    """
    dims = [(n, step) for n, step in zip(shape, strides, strict=True) if n != 1]
    dims.sort(key=lambda dim: (dim[1] != 0, -dim[1]))
    joined: list[tuple[int, int]] = []
    for n, step in dims:
        if joined and joined[-1][1] == n * step:
            joined[-1] = (joined[-1][0] * n, step)
        else:
            joined.append((n, step))
    return joined
