"""The rows of all slots in one step, packed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from numwatch.stats import TensorStats, unpack_row

_PIECES = 16
"""In more of them rows are copied, for each is looked at by itself later on."""


@dataclass(frozen=True)
class Cast:
    """What a library's own cast to `format` did to a tensor.

    Attributes:
        scale: The per-tensor scale in force; NaN where there is one per row or block.
        flushed: Non-zero elements that became zero.
        saturated: Elements whose scaled magnitude was above the format's largest value.
    """

    format: str
    scale: float
    flushed: int
    saturated: int


@dataclass(frozen=True)
class Row:
    """One slot in one step."""

    slot: str
    stats: TensorStats
    loss_scale: float
    cast: Cast | None


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a step, packed as the kernels left them.

    Attributes:
        slots: Names of the slots seen, n of them.
        counts: int64 [n, stats.COUNTS], see `stats.layout`.
        reals: float64 [n, stats.REALS].
        loss_scales: float64 [n]; the loss scale a row's numbers are multiplied by, 1 for forward
            roles.
        casts: A `Cast` for each row whose operand a library casts itself, else None.
        full: False where only amax, numel and the non-finite elements were measured; see
            `stats.layout.AMAX_ONLY`.
    """

    slots: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    reals: npt.NDArray[np.float64]
    loss_scales: npt.NDArray[np.float64]
    casts: tuple[Cast | None, ...]
    full: bool

    @property
    def parts(self) -> "tuple[Rows, ...]":
        """The same rows as they lie in memory, each part in one piece."""
        return (self,)

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Row]:
        for i, slot in enumerate(self.slots):
            stats = unpack_row(self.counts[i], self.reals[i])
            yield Row(slot, stats, float(self.loss_scales[i]), self.casts[i])


class JoinedRows(Rows):
    """The rows of several parts, whose arrays are brought together only when asked for."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        """Joins at least one part; all were measured alike."""
        loss_scales = np.concatenate([part.loss_scales for part in parts])
        given = {
            "_parts": tuple(inner for part in parts for inner in part.parts),
            "slots": tuple(chain.from_iterable(part.slots for part in parts)),
            "loss_scales": loss_scales,
            "casts": tuple(chain.from_iterable(part.casts for part in parts)),
            "full": parts[0].full,
        }
        self.__dict__.update(given)

    @property
    def parts(self) -> tuple[Rows, ...]:
        """The parts."""
        parts: tuple[Rows, ...] = self.__dict__["_parts"]
        return parts

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """A copy of all parts' counts."""
        return np.concatenate([part.counts for part in self.parts])

    @cached_property
    def reals(self) -> npt.NDArray[np.float64]:
        """A copy of all parts' reals."""
        return np.concatenate([part.reals for part in self.parts])

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.parts)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of all parts, which were measured alike; at least one."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def pick_rows(rows: Rows, seen: npt.NDArray[np.int64]) -> Rows:
    """Returns some of the rows, whose places ascend; views where few pieces hold them all."""
    ends = np.flatnonzero(np.diff(seen) > 1) + 1
    if not len(seen) or len(ends) >= _PIECES:
        places = seen.tolist()
        slots, casts = (tuple(all_of[i] for i in places) for all_of in (rows.slots, rows.casts))
        numbers = (rows.counts[seen], rows.reals[seen], rows.loss_scales[seen])
        return Rows(slots, *numbers, casts, rows.full)
    pieces = [slice(int(own[0]), int(own[-1]) + 1) for own in np.split(seen, ends)]
    return join_rows([cut_rows(rows, at) for at in pieces])


def cut_rows(rows: Rows, at: slice) -> Rows:
    """Returns a piece of the rows, a view."""
    return Rows(
        rows.slots[at],
        rows.counts[at],
        rows.reals[at],
        rows.loss_scales[at],
        rows.casts[at],
        rows.full,
    )
