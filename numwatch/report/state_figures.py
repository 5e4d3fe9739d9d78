"""What became of the optimizer's state, over many steps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record.ahead import joined
from numwatch.snapshot import path_of, role_of

_LAST = ("dtype", "eps", "eps_stored", "decay", "decay_stored")
_SHARES = ("below_eps", "vanished")


@dataclass(frozen=True)
class StateFigures:
    """One tensor of an optimizer's state; see `numwatch.step_entries.OptimizerState`.

    Shares are averages over steps by their sampled elements; None where not defined.

    Attributes:
        state: Its key, `exp_avg_sq`.
        steps: Steps measured.
        sampled: Elements looked at in all of them.
        eps: Of the last step, and so are `dtype`, `eps_stored`, `decay` and `decay_stored`.
        rms: Largest RMS_t of all steps.
        rms_step: The step it is from.
    """

    parameter: str
    state: str
    dtype: str
    steps: int
    sampled: int
    eps: float | None
    eps_stored: float | None
    decay: float | None
    decay_stored: float | None
    below_eps: float | None
    vanished: float | None
    rms: float | None
    rms_step: int | None

    @property
    def eps_is_zero(self) -> bool:
        """Whether the dtype has no number for eps, so that 0 / 0 is near."""
        return bool(self.eps) and self.eps_stored == 0.0

    @property
    def never_decays(self) -> bool:
        """Whether the dtype takes the decay for 1."""
        return self.decay is not None and self.decay < 1.0 and self.decay_stored == 1.0


def read_states(tables: Iterable[pa.Table]) -> tuple[StateFigures, ...]:
    """Returns what pieces of the `states` table say, slot by slot in order of appearance."""
    totals = _Totals()
    for table in joined(tables):
        totals.add(table)
    return totals.figures()


class _Totals:
    """Columns of sums, a line for each slot."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._last: list[dict[str, Any]] = []
        self._counts = np.zeros((2, 0), np.int64)
        self._sums = np.zeros((2 * len(_SHARES), 0))
        self._rms = np.zeros((2, 0))

    def add(self, table: pa.Table) -> None:
        """Adds a piece of the table."""
        slots = pc.dictionary_encode(table["slot"].combine_chunks())
        names, codes = slots.dictionary.to_pylist(), slots.indices.to_numpy()
        of_name = [self._lines.setdefault(name, len(self._lines)) for name in names]
        self._grow()
        lines = np.array(of_name, np.int64)[codes]
        sampled = table["sampled"].to_numpy()
        np.add.at(self._counts[0], lines, 1)
        np.add.at(self._counts[1], lines, sampled)
        for place, name in enumerate(_SHARES):
            share = _column(table, name)
            known = np.isfinite(share)
            np.add.at(self._sums[2 * place], lines[known], (share * sampled)[known])
            np.add.at(self._sums[2 * place + 1], lines[known], sampled[known])
        self._add_rms(lines, _column(table, "rms"), table["step"].to_numpy())
        last = np.zeros(len(names), np.int64)
        last[codes] = np.arange(len(codes))  # of equal places the last one stays
        rows = table.select(_LAST).take(pa.array(last)).to_pylist()
        for line, row in zip(of_name, rows, strict=True):
            self._last[line] = row

    def figures(self) -> tuple[StateFigures, ...]:
        """Returns the figures of each slot."""
        return tuple(self._figures(slot, line) for slot, line in self._lines.items())

    def _grow(self) -> None:
        new = len(self._lines) - len(self._last)
        self._last += [{}] * new
        self._counts = np.pad(self._counts, ((0, 0), (0, new)))
        self._sums = np.pad(self._sums, ((0, 0), (0, new)))
        self._rms = np.pad(self._rms, ((0, 0), (0, new)), constant_values=np.nan)

    def _add_rms(
        self,
        lines: npt.NDArray[np.int64],
        rms: npt.NDArray[np.float64],
        steps: npt.NDArray[np.int64],
    ) -> None:
        before = self._rms[0].copy()
        finite = np.isfinite(rms)
        np.fmax.at(self._rms[0], lines[finite], rms[finite])
        risen = finite & (rms == self._rms[0][lines]) & ~(rms <= before[lines])
        rows = np.flatnonzero(risen)[::-1]  # of equal ones the first one stays
        self._rms[1][lines[rows]] = steps[rows]

    def _figures(self, slot: str, line: int) -> StateFigures:
        steps, sampled = self._counts[:, line].tolist()
        rms, step = self._rms[:, line].tolist()
        shares: dict[str, Any] = {}
        for place, name in enumerate(_SHARES):
            product, weight = self._sums[2 * place : 2 * place + 2, line].tolist()
            shares[name] = product / weight if weight else None
        return StateFigures(
            parameter=path_of(slot),
            state=role_of(slot),
            steps=steps,
            sampled=sampled,
            rms=None if math.isnan(rms) else rms,
            rms_step=None if math.isnan(rms) else int(step),
            **self._last[line],
            **shares,
        )


def _column(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    # Nulls read as NaN.
    numbers: npt.NDArray[np.float64] = pc.cast(table[name], pa.float64()).to_numpy()
    return numbers
