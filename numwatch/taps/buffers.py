"""The memory the rows of a step stand in: one piece a device, so that one copy takes it away."""

import torch
from torch import Tensor

from numwatch.stats.layout import AMIN, COUNTS, REALS
from numwatch.stats.rows import merge_rows
from numwatch.taps.host_memory import zeros_on_host

CAST_SCALE, CAST_FLUSHED, CAST_SATURATED, CAST_CALLS = range(4)
"""Columns of what a library's own casts did: the last scale, and sums over the step."""
_CASTS = CAST_CALLS + 1


class Buffers:
    """The rows of n slots on one device.

    Attributes:
        packed: int64 [n * columns], all of it; FP64 columns share its memory bit for bit.
        counts: int64 [n, COUNTS], a view.
        reals: float64 [n, REALS], a view.
        casts: float64 [n, 4], a view.
        fixed: Whether the rows must stay in their place, as captured graphs write to it.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self._n, self._device = n, device
        self.fixed = device.type != "cpu"
        self._allocate()

    def merge(self, into: int, row: int) -> None:
        """Adds one row to another, in place."""
        merge_rows(self.counts[into], self.reals[into], self.counts[row], self.reals[row])

    def release(self) -> Tensor:
        """Returns all rows, nobody else's from now on, and starts empty ones."""
        if self.fixed:
            released = self.packed.clone()
            self.packed.zero_()
            self.reals[:, AMIN] = torch.inf
        else:
            released = self.packed
            self._allocate()
        return released

    def _allocate(self) -> None:
        columns = self._n * (COUNTS + REALS + _CASTS)
        with torch.inference_mode(mode=False):
            self.packed = (
                zeros_on_host(columns)
                if self._device.type == "cpu"
                else torch.zeros(columns, dtype=torch.int64, device=self._device)
            )
        self.counts, self.reals, self.casts = split(self.packed, self._n)
        self.reals[:, AMIN] = torch.inf


def split(packed: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns views of packed rows: counts [n, COUNTS], reals [n, REALS], casts [n, 4]."""
    counts, reals, casts = packed.split([n * COUNTS, n * REALS, n * _CASTS])
    return (
        counts.view(n, COUNTS),
        reals.view(torch.float64).view(n, REALS),
        casts.view(torch.float64).view(n, _CASTS),
    )
