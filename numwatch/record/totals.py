"""What each slot showed over many steps: rows merged slot by slot, without unpacking any."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.snapshot import role_of
from numwatch.stats import AMIN, COUNTS, REALS, TensorStats, unpack_row
from numwatch.stats.binades import BINADE_MIN
from numwatch.stats.layout import COUNT_COLUMNS, REAL_COLUMNS

_FULL = [*COUNT_COLUMNS, *REAL_COLUMNS, "binade_first", "binades"]
_NONFINITES = ("nans", "posinfs", "neginfs")
_MERGES: dict[str, np.ufunc] = {"amax": np.fmax, "amin": np.fmin}
"""How the reals that are no sums merge; a hostile NaN among them is as good as none."""


@dataclass(frozen=True)
class CastTotals:
    """What a library's own cast did to a slot's tensors over many steps.

    Attributes:
        format: Format of the last cast.
        flushed: Non-zero elements that became zero.
        saturated: Elements above the format's largest value.
        nonzeros: Finite non-zero elements cast.
        peak: Largest amax times scale; NaN where no cast had one scale for the whole tensor.
    """

    format: str
    flushed: int
    saturated: int
    nonzeros: int
    peak: float


@dataclass(frozen=True)
class SlotTotals:
    """All rows of a slot, merged in the domain in which they were seen.

    Attributes:
        stats: The full rows merged; empty where there is none. Gradients are multiplied by the
            loss scale of their step.
        full_rows: How many rows that is.
        amax_only_rows: How many rows there are beside them.
        nans: NaN elements in all rows, amax-only ones included, unlike `stats.nans`.
        posinfs: Elements that are +inf, likewise.
        neginfs: Elements that are -inf, likewise.
        amax: Largest amax of all rows.
        amax_unscaled: The same with each row's amax divided by its loss scale.
        loss_scale: Largest loss scale of all rows; 1.0 where none applies.
        cast: What the slot's own casts did, or None.
    """

    slot: str
    stats: TensorStats
    full_rows: int
    amax_only_rows: int
    nans: int
    posinfs: int
    neginfs: int
    amax: float
    amax_unscaled: float
    loss_scale: float
    cast: CastTotals | None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.full_rows + self.amax_only_rows

    @property
    def nonfinites(self) -> int:
        """NaN and infinite elements in all rows."""
        return self.nans + self.posinfs + self.neginfs


def slot_totals(tables: Iterable[pa.Table]) -> dict[str, SlotTotals]:
    """Returns the totals of each slot in pieces of the `tensors` table, in order of appearance."""
    return read_totals(tables).by_slot()


def read_totals(tables: Iterable[pa.Table]) -> "Totals":
    """Returns the totals of pieces of the `tensors` table, read once."""
    totals = Totals()
    for table in tables:
        totals.add(table)
    return totals


class Totals:
    """Columns of sums, one line for each slot and each loss scale it was seen under."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, float], int] = {}
        self._counts = np.zeros((0, COUNTS), np.int64)
        self._reals = np.zeros((0, REALS))
        self._rows = np.zeros((0, 2), np.int64)
        self._nonfinites = np.zeros((0, len(_NONFINITES)), np.int64)
        self._peaks = np.zeros((0, 4))
        self._casts = np.zeros((0, 3), np.int64)
        self._cast_formats: dict[str, str] = {}

    def add(self, table: pa.Table) -> None:
        """Adds a piece of the table."""
        ids = self._line_of_rows(table)
        amax, loss_scale = _numbers(table, "amax"), _numbers(table, "loss_scale")
        for column, name in enumerate(_NONFINITES):
            np.add.at(self._nonfinites[:, column], ids, table[name].to_numpy())
        # A scaler has no floor: the loss scale can be 0, and all it scaled with it.
        with np.errstate(over="ignore"):
            unscaled = np.divide(amax, loss_scale, out=np.zeros_like(amax), where=loss_scale > 0)
        peaks = np.stack([amax, unscaled, loss_scale], axis=1)
        for column in range(peaks.shape[1]):
            np.fmax.at(self._peaks[:, column], ids, peaks[:, column])
        full = table["binades"].is_valid().to_numpy()
        np.add.at(self._rows, (ids, np.where(full, 0, 1)), 1)
        if full.any():
            self._add_full(table.select(_FULL).filter(full), ids[full])
        cast = full & table["cast_format"].is_valid().to_numpy()
        if cast.any():
            self._add_casts(table.filter(cast), ids[cast])

    def by_slot(self) -> dict[str, SlotTotals]:
        """Returns the totals of each slot over all its loss scales, in order of appearance."""
        lines = defaultdict(list)
        for (slot, _), line in self._lines.items():
            lines[slot].append(line)
        return {slot: self._slot(slot, own) for slot, own in lines.items()}

    def by_loss_scale(self, roles: Collection[str]) -> dict[tuple[str, float], TensorStats]:
        """Returns the full rows of each slot and loss scale merged, of slots in these roles."""
        return {
            (slot, loss_scale): unpack_row(self._counts[line], self._reals[line])
            for (slot, loss_scale), line in self._lines.items()
            if self._rows[line, 0] and role_of(slot) in roles
        }

    def extremes(self, roles: Collection[str]) -> dict[tuple[str, float], TensorStats]:
        """Returns amax and infinities of the same slots where there are amax-only rows too."""
        found = {}
        for (slot, loss_scale), line in self._lines.items():
            if self._rows[line, 1] and role_of(slot) in roles:
                _, posinfs, neginfs = self._nonfinites[line].tolist()
                amax = float(self._peaks[line, 0])
                found[slot, loss_scale] = TensorStats(
                    numel=posinfs + neginfs,
                    zeros=0,
                    nans=0,
                    posinfs=posinfs,
                    neginfs=neginfs,
                    pow2s=0,
                    amax=amax,
                    amin=math.inf,
                    sum=0.0,
                    sumsq=0.0,
                    binade_first=0,
                    binades=(),
                )
        return found

    def _slot(self, slot: str, lines: list[int]) -> SlotTotals:
        amax, unscaled, loss_scale, cast_peak = self._peaks[lines].max(axis=0).tolist()
        cast = None
        if slot in self._cast_formats:
            peak = cast_peak if cast_peak > 0 else float("nan")
            flushed, saturated, nonzeros = self._casts[lines].sum(axis=0).tolist()
            cast = CastTotals(self._cast_formats[slot], flushed, saturated, nonzeros, peak)
        full_rows, amax_only_rows = self._rows[lines].sum(axis=0).tolist()
        nans, posinfs, neginfs = self._nonfinites[lines].sum(axis=0).tolist()
        return SlotTotals(
            slot=slot,
            stats=unpack_row(self._counts[lines].sum(axis=0), merged_reals(self._reals[lines])),
            full_rows=full_rows,
            amax_only_rows=amax_only_rows,
            nans=nans,
            posinfs=posinfs,
            neginfs=neginfs,
            amax=amax,
            amax_unscaled=unscaled,
            loss_scale=loss_scale,
            cast=cast,
        )

    def _line_of_rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        slots = pc.dictionary_encode(table["slot"].combine_chunks())
        names = slots.dictionary.to_pylist()
        encoded = pc.dictionary_encode(table["loss_scale"].combine_chunks())
        scales = encoded.dictionary.to_pylist()
        pair_of_row = slots.indices.to_numpy().astype(np.int64) * len(scales)
        pair_of_row += encoded.indices.to_numpy()
        pairs = np.flatnonzero(np.bincount(pair_of_row))
        keys = [(names[pair // len(scales)], scales[pair % len(scales)]) for pair in pairs.tolist()]
        own = np.zeros(len(names) * len(scales), np.int64)
        own[pairs] = [self._lines.setdefault(key, len(self._lines)) for key in keys]
        new = len(self._lines) - len(self._counts)
        if new:
            self._counts = _grown(self._counts, new)
            self._reals = _grown(self._reals, new)
            self._reals[-new:, AMIN] = np.inf
            self._rows, self._peaks = _grown(self._rows, new), _grown(self._peaks, new)
            self._nonfinites = _grown(self._nonfinites, new)
            self._casts = _grown(self._casts, new)
        line_of_row: npt.NDArray[np.int64] = own[pair_of_row]
        return line_of_row

    def _add_full(self, table: pa.Table, ids: npt.NDArray[np.int64]) -> None:
        for name, at in COUNT_COLUMNS.items():
            np.add.at(self._counts[:, at], ids, table[name].to_numpy())
        for name, at in REAL_COLUMNS.items():
            _MERGES.get(name, np.add).at(self._reals[:, at], ids, table[name].to_numpy())
        lengths = pc.list_value_length(table["binades"]).to_numpy()
        first = table["binade_first"].to_numpy() - BINADE_MIN
        starts = np.cumsum(lengths) - lengths
        column = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
        values = pc.list_flatten(table["binades"]).to_numpy()
        flat = np.repeat(ids * COUNTS, lengths) + column
        np.add.at(self._counts.reshape(-1), flat, values)

    def _add_casts(self, table: pa.Table, ids: npt.NDArray[np.int64]) -> None:
        numel = table["numel"].to_numpy()
        apart = sum(table[name].to_numpy() for name in ("zeros", "nans", "posinfs", "neginfs"))
        sums = (_numbers(table, "cast_flushed"), _numbers(table, "cast_saturated"), numel - apart)
        for column, values in enumerate(sums):
            np.add.at(self._casts[:, column], ids, values.astype(np.int64))
        with np.errstate(over="ignore"):
            peaks = _numbers(table, "amax") * _numbers(table, "cast_scale")
        np.fmax.at(self._peaks[:, -1], ids, peaks)
        slots, formats = table["slot"].to_pylist(), table["cast_format"].to_pylist()
        self._cast_formats.update(zip(slots, formats, strict=True))


def merged_reals(reals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Merges reals [n, REALS] of n rows into those [REALS] of one."""
    merged = np.zeros(REALS)
    for name, at in REAL_COLUMNS.items():
        merged[at] = _MERGES.get(name, np.add).reduce(reals[:, at])
    return merged


def _grown(array: npt.NDArray[Any], lines: int) -> npt.NDArray[Any]:
    return np.concatenate([array, np.zeros((lines, array.shape[1]), array.dtype)])


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = table[name].to_numpy()
    return numbers
