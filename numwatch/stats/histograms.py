"""Histograms of many tensors as columns, for figures of all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Histograms:
    """The histograms of n rows; see `numwatch.TensorStats`.

    Attributes:
        counts: Int64, the rows' binades one after the other.
        ends: Int64 [n + 1], where in `counts` each row's begin, and the end.
        first: Int64 [n], exponent of each row's first binade.
        pow2s: Int64 [n].
        amin: Float64 [n].
        amax: Float64 [n].
    """

    counts: Ints
    ends: Ints
    first: Ints
    pow2s: Ints
    amin: Doubles
    amax: Doubles

    def __len__(self) -> int:
        return len(self.first)

    @property
    def elements(self) -> Ints:
        """Finite non-zero elements, int64 [n]."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])
        elements: Ints = np.diff(sums[self.ends])
        return elements


def places_of(begin: Ints, length: Ints) -> tuple[Ints, Ints]:
    """Returns where some rows' binades stand in a column of them, and the rows' new `ends`.

    Args:
        begin: Int64 [n], where each row's begin.
        length: Int64 [n], how many they are.
    """
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    return np.arange(ends[-1]) + np.repeat(begin - ends[:-1], length), ends
