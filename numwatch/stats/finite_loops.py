"""The CPU loop that looks for what is not finite: the largest magnitude, as a bit pattern."""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit
from numwatch.stats.memory import array_at

_CHUNK = 1 << 14
_WIDE = 4


@jit
def largest_magnitude(table: Any, k: Any, width: Any, enough: Any) -> Any:
    """Returns the largest magnitude pattern of k tensors; not beyond the first that is `enough`.

    Args:
        table: Address of int64 [k, 2]: each tensor's address and size.
        k: Tensors.
        width: Bytes of an element: 2 or 4.
        enough: Where one reaches this, the rest is not read.
    """
    tasks = array_at(table, 2 * k, np.int64)
    largest = np.int64(0)
    for i in range(k):
        address, n = tasks[2 * i], tasks[2 * i + 1]
        for start in range(0, n, _CHUNK):
            size, here = min(_CHUNK, n - start), address + width * start
            if width == _WIDE:
                found = np.int64(_largest32(array_at(here, size, np.uint32)))
            else:
                found = np.int64(_largest16(array_at(here, size, np.uint16)))
            largest = max(largest, found)
            if largest >= enough:
                return largest
    return largest


@jit
def _largest32(bits: Any) -> Any:
    largest = np.uint32(0)
    for j in range(bits.size):
        largest = max(largest, np.uint32(bits[j] & np.uint32(0x7FFF_FFFF)))
    return largest


@jit
def _largest16(bits: Any) -> Any:
    largest = np.uint16(0)
    for j in range(bits.size):
        largest = max(largest, np.uint16(bits[j] & np.uint16(0x7FFF)))
    return largest
