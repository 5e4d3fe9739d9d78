"""The rows of a finished step on their way to the host, and what they are once there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from numwatch.stats import merge_rows
from numwatch.stats.layout import AMAX, AMIN, CALLS, SUM
from numwatch.taps.buffers import (
    CAST_CALLS,
    CAST_FLUSHED,
    CAST_SATURATED,
    CAST_SCALE,
    Buffers,
    split,
)
from numwatch.taps.parcel import Parcel
from numwatch.tensor_rows import Cast, Rows, pick_rows

Array = npt.NDArray[Any]


class SentRows:
    """The rows of a finished step, on their way.

    Attributes:
        names: Names of all slots, by index.
    """

    def __init__(
        self,
        parcel: Parcel,
        names: tuple[str, ...],
        scaled: Array,
        cast_formats: dict[int, str],
        turns: Sequence[int] = (),
        followed: Sequence[tuple[int, int]] = (),
        *,
        full: bool,
    ) -> None:
        self.parcel = parcel
        self.names = names
        self._scaled = scaled
        self._cast_formats = cast_formats
        self._turns = np.array(turns or [0] * len(names), dtype=np.int64)
        self._followed = np.array(followed, dtype=np.int64).reshape(-1, 2)
        self._full = full

    def rows(self, loss_scales: Sequence[float] = (1.0,)) -> Rows:
        """Unpacks the rows once they have arrived, leaving out slots that saw nothing.

        Args:
            loss_scales: At each optimizer's turn in the step; the last holds from there on.
        """
        counts, reals, casts = self._merged()
        scales = np.asarray(loss_scales)[np.minimum(self._turns, len(loss_scales) - 1)]
        own_scales: Array = np.where(self._scaled, scales, 1.0)
        seen = np.flatnonzero(counts[:, CALLS])
        cast: tuple[Cast | None, ...] = (None,) * len(self.names)
        if self._cast_formats:
            cast = tuple(map(self._cast, range(len(self.names)), casts))
        rows = Rows(self.names, counts, reals, own_scales, cast, self._full)
        return rows if len(seen) == len(self.names) else pick_rows(rows, seen)

    def _merged(self) -> tuple[Array, Array, Array]:
        n = len(self.names)
        devices = [split(packed, n) for packed in self.parcel.tensors()]
        if not devices:
            devices = [split(Buffers(n, torch.device("cpu")).packed, n)]
        counts, reals, casts = devices[0]
        for more_counts, more_reals, more_casts in devices[1:]:
            merge_rows(counts, reals, more_counts, more_reals)
            casts += more_casts  # a slot's casts run on one device, the others hold zeros
        own_counts, own_reals = counts.numpy(), reals.numpy()
        if len(self._followed):
            _add_followed(own_counts, own_reals, self._followed)
        return own_counts, own_reals, casts.numpy()

    def _cast(self, index: int, row: Array) -> Cast | None:
        if not row[CAST_CALLS]:
            return None
        return Cast(
            self._cast_formats[index],
            scale=float(row[CAST_SCALE]),
            flushed=int(row[CAST_FLUSHED]),
            saturated=int(row[CAST_SATURATED]),
        )


def _add_followed(counts: Array, reals: Array, followed: Array) -> None:
    """Adds to the row of each follower that of the slot it follows, as that was before any."""
    own, first = followed.T
    more_counts, more_reals = counts[first], reals[first]
    np.add.at(counts, own, more_counts)
    np.maximum.at(reals[:, AMAX], own, more_reals[:, AMAX])
    np.minimum.at(reals[:, AMIN], own, more_reals[:, AMIN])
    np.add.at(reals[:, SUM:], own, more_reals[:, SUM:])
