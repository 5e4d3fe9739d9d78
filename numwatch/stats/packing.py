"""The samples of many tensors side by side, so that all of them are looked at in one operation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from numwatch.errors import NumwatchError
from numwatch.stats.compiled import has_loops
from numwatch.stats.prepare import address_of, is_plain


def pack(tensors: Sequence[Tensor], strides: Sequence[int], n: int) -> Tensor:
    """Returns every `stride`-th element of each tensor, flattened: a copy [k, n] that is detached.

    Args:
        tensors: k of them on one device, at least one; dtypes that differ are promoted.
        strides: A step between elements for each, which leaves n of them.
        n: Elements taken of each.
    """
    dtype, *others = {tensor.dtype for tensor in tensors}
    for other in others:
        dtype = torch.promote_types(dtype, other)
    packing = by_loops if not others and tensors[0].is_cpu and has_loops() else by_operations
    return packing(tensors, strides, n, dtype)


def by_operations(
    tensors: Sequence[Tensor], strides: Sequence[int], n: int, dtype: torch.dtype
) -> Tensor:
    """Does what `pack` tells on any device, in torch's operations."""
    del n
    samples = zip(tensors, strides, strict=True)
    return torch.stack([x.detach().reshape(-1)[::stride].to(dtype) for x, stride in samples])


def by_loops(
    tensors: Sequence[Tensor], strides: Sequence[int], n: int, dtype: torch.dtype
) -> Tensor:
    """Does the same on a CPU, in one loop over addresses."""
    from numwatch.stats.packing_loops import gather

    packed = torch.empty(len(tensors), n, dtype=dtype, device="cpu")
    table: list[int] = []
    for row, (x, stride) in enumerate(zip(tensors, strides, strict=True)):
        if -(-x.numel() // stride) != n:  # an optimizer's step may have given it another shape
            raise NumwatchError(f"a parameter has {x.numel()} elements now: its sample had {n}")
        if x.is_cpu and is_plain(x) and x.is_contiguous():
            table += (address_of(x), stride)
        else:
            packed[row] = x.detach().reshape(-1)[::stride]
            table += (0, 0)  # it is there already
    tasks = np.array(table, np.int64)
    gather(tasks.ctypes.data, len(tensors), n, packed.data_ptr(), packed.itemsize)
    return packed
