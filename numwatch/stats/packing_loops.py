"""The CPU loop that brings samples of many tensors together."""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit
from numwatch.stats.memory import array_at


@jit
def gather(table: Any, k: Any, n: Any, to: Any, width: Any) -> None:
    """Copies elements of k tensors to memory [k, n].

    Args:
        table: Address of int64 [k, 2]: each tensor's address, 0 where nothing is to be copied, and
            the step between its elements.
        k: Tensors.
        n: Elements of each.
        to: Address of the memory.
        width: Bytes of an element: 1, 2, 4 or 8.
    """
    tasks = array_at(table, 2 * k, np.int64)
    for i in range(k):
        address, stride = tasks[2 * i], tasks[2 * i + 1]
        here = to + i * n * width
        if not address:
            continue
        if stride == 1:
            _copy(address, n * width, here)
        elif width == 4:  # noqa: PLR2004
            _pick(array_at(address, n * stride, np.uint32), stride, array_at(here, n, np.uint32))
        elif width == 2:  # noqa: PLR2004
            _pick(array_at(address, n * stride, np.uint16), stride, array_at(here, n, np.uint16))
        elif width == 8:  # noqa: PLR2004
            _pick(array_at(address, n * stride, np.uint64), stride, array_at(here, n, np.uint64))
        else:
            _pick(array_at(address, n * stride, np.uint8), stride, array_at(here, n, np.uint8))


@jit
def _copy(address: Any, size: Any, to: Any) -> None:
    source, target = array_at(address, size, np.uint8), array_at(to, size, np.uint8)
    for i in range(size):
        target[i] = source[i]


@jit
def _pick(source: Any, stride: Any, target: Any) -> None:
    for i in range(target.size):
        target[i] = source[i * stride]
