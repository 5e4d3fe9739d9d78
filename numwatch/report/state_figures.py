"""What became of the optimizer's state, over many steps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.snapshot import path_of, role_of

_LAST = ("dtype", "eps", "eps_stored", "decay", "decay_stored")
_SHARES = ("below_eps", "vanished")


@dataclass(frozen=True)
class StateFigures:
    """One tensor of an optimizer's state; see `numwatch.snapshot.OptimizerState`.

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
    found: dict[str, _Totals] = {}
    for table in tables:
        for slot, rows in _by_slot(table):
            found.setdefault(slot, _Totals()).add(table, rows)
    return tuple(_figures(slot, totals) for slot, totals in found.items())


@dataclass
class _Totals:
    steps: int = 0
    sampled: int = 0
    last: dict[str, Any] | None = None
    products: npt.NDArray[np.float64] | float = 0.0
    weights: npt.NDArray[np.float64] | float = 0.0
    rms: float | None = None
    rms_step: int | None = None

    def add(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> None:
        self.steps += len(rows)
        self.last = {name: table[name][int(rows[-1])].as_py() for name in _LAST}
        sampled = table["sampled"].to_numpy()[rows]
        self.sampled += int(sampled.sum())
        shares = np.stack([_column(table, name)[rows] for name in _SHARES])
        known = np.isfinite(shares)
        self.products = self.products + np.where(known, shares * sampled, 0.0).sum(axis=1)
        self.weights = self.weights + np.where(known, sampled, 0).sum(axis=1)
        rms = _column(table, "rms")[rows]
        if np.isfinite(rms).any():
            largest = int(np.nanargmax(np.where(np.isfinite(rms), rms, np.nan)))
            if self.rms is None or rms[largest] > self.rms:
                self.rms = float(rms[largest])
                self.rms_step = table["step"][int(rows[largest])].as_py()


def _by_slot(table: pa.Table) -> Iterable[tuple[str, npt.NDArray[np.int64]]]:
    """Yields each slot of a piece and the places of its rows."""
    slots = pc.dictionary_encode(table["slot"].combine_chunks())
    codes = slots.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(1, len(slots.dictionary)))
    return zip(slots.dictionary.to_pylist(), np.split(order, starts), strict=True)


def _column(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    # Nulls read as NaN.
    numbers: npt.NDArray[np.float64] = pc.cast(table[name], pa.float64()).to_numpy()
    return numbers


def _figures(slot: str, totals: _Totals) -> StateFigures:
    products, weights = np.atleast_1d(totals.products), np.atleast_1d(totals.weights)
    shares: dict[str, Any] = {
        name: float(product / weight) if weight else None
        for name, product, weight in zip(_SHARES, products, weights, strict=True)
    }
    last = totals.last or {}
    return StateFigures(
        parameter=path_of(slot),
        state=role_of(slot),
        steps=totals.steps,
        sampled=totals.sampled,
        rms=totals.rms,
        rms_step=totals.rms_step,
        **last,
        **shares,
    )
