"""Whether numbers on the CPU are all finite, at the price of reading them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from numwatch.stats.compiled import has_loops
from numwatch.stats.dtypes import LAYOUTS
from numwatch.stats.prepare import LOW, is_plain

_INFINITIES = {
    dtype: LAYOUTS[dtype].largest + 1 for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
"""Magnitude pattern of inf, which those of NaN are above."""


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element of these dense CPU tensors is NaN or infinite; waits for no device."""
    if not has_loops():
        return by_operations(tensors)
    rest: list[Tensor] = []
    tables: dict[torch.dtype, list[int]] = {}
    for x in tensors:
        address = x.data_ptr() if x.dtype in _INFINITIES and is_plain(x) else 0
        if address > LOW and x.is_contiguous():
            tables.setdefault(x.dtype, []).extend((address, x.numel()))
        else:
            rest.append(x)
    from numwatch.stats.finite_loops import largest_magnitude

    for dtype, table in tables.items():
        tasks = np.array(table, np.int64)
        infinity = _INFINITIES[dtype]
        largest = largest_magnitude(tasks.ctypes.data, len(tasks) // 2, dtype.itemsize, infinity)
        if largest >= infinity:
            return False
    return by_operations(rest)


def by_operations(tensors: Sequence[Tensor]) -> bool:
    """Does what `all_finite` tells, in torch's operations."""
    if not tensors:
        return True
    # A norm reads them faster than isfinite does; only where it overflows they are read again.
    norms = torch._foreach_norm(list(tensors), 2)  # noqa: SLF001  # as in clip_grad_norm_
    if all(map(math.isfinite, map(float, norms))):
        return True
    return all(bool(x.isfinite().all()) for x in tensors)
