"""One kind of rows as the ranks add them up: a sum and a maximum for each of some columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NOTHING = -np.inf
"""The maximum of no values."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows by key.

    Attributes:
        keys: Of n rows.
        sums: float64 [n, s], what adds up over ranks.
        maxima: float64 [n, m], what the largest of all ranks stands for; no NaN.
    """

    keys: tuple[str, ...]
    sums: Array
    maxima: Array

    def laid_out(self, places: Sequence[int], n: int) -> "tuple[Array, Array]":
        """Returns sums [n, s] and maxima [n, m] with row i at `places[i]`, left out where < 0."""
        sums = np.zeros((n, self.sums.shape[1]))
        maxima = np.full((n, self.maxima.shape[1]), NOTHING)
        at = np.asarray(places, dtype=np.intp)
        own = at >= 0
        sums[at[own]], maxima[at[own]] = self.sums[own], self.maxima[own]
        return sums, maxima


def largest(value: float | None) -> float:
    """Returns a value for a column of maxima; None and NaN are nothing."""
    return NOTHING if value is None or np.isnan(value) else float(value)


def known(value: float) -> float | None:
    """Returns what `largest` was given, None for nothing."""
    return None if value == NOTHING else float(value)
