"""The largest value in each of many windows over a series, in O(n log(window))."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def window_maxima(values: Floats, first: Ints, end: Ints) -> Floats:
    """Returns the largest of `values[first:end]` for each window; 0 of an empty one.

    NaN is passed over, as by C's `fmaxf`; a window of nothing but NaN gives NaN.

    Args:
        values: FP32 [n].
        first: Int64 [m], 0 <= first.
        end: Int64 [m], end <= n.
    """
    maxima = np.zeros(len(first), np.float32)
    lengths = end - first
    # Two windows of 2^level that overlap cover one of any length below 2^(level + 1).
    levels = np.where(lengths > 0, np.frexp(np.maximum(lengths, 1))[1] - 1, -1)
    covered = values
    for level in range(int(levels.max(initial=-1)) + 1):
        if level:
            half = 1 << (level - 1)
            covered = np.fmax(covered[:-half], covered[half:])
        own = levels == level
        maxima[own] = np.fmax(covered[first[own]], covered[end[own] - (1 << level)])
    return maxima
