"""The columns of the `tensors` table that rules look at, read once and sorted by slot and step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record import Run
from numwatch.record.ahead import read_ahead
from numwatch.record.slot_formats import judged_format
from numwatch.snapshot import SlotInfo

AHEAD_ROWS = 500_000
"""Reading one piece while another is looked at saves a second from so many rows on, not memory."""
Columns = dict[str, npt.NDArray[Any]]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def read_columns(
    run: Run,
    names: Sequence[str],
    progress: Callable[[int], None] | None,
    first: int | None = None,
) -> tuple[dict[str, int], list[int], Columns]:
    """Returns what a run's rows say, slot by slot.

    Args:
        run: The run.
        names: Names of the columns, attributes of `numwatch.diagnose.evidence.Series`.
        progress: Called with the number of rows read with each piece.
        first: First step that is read; None for all.

    Returns:
        The place of each slot, where the rows of each place start (one more for the end), and the
        columns.
    """
    places: dict[str, int] = {}
    columns: Columns = {}
    cuts = _Cuts(run.slots)
    filled, rows = 0, run.rows("tensors")
    tables = run.batches("tensors", first=first)
    for table in read_ahead(tables) if rows > AHEAD_ROWS else tables:
        if table.num_rows:
            for name, values in _columns(table, places, cuts).items():
                whole = columns.setdefault(name, np.empty(rows, values.dtype))
                whole[filled : filled + len(values)] = values
            filled += table.num_rows
        if progress is not None:
            progress(table.num_rows)
    if not filled:
        empty = {name: np.zeros(0) for name in names}
        return {}, [0], {**empty, "step": np.zeros(0, np.int64), "full": np.zeros(0, bool)}
    place = columns.pop("place")[:filled]
    order = np.lexsort((columns["step"][:filled], place))
    starts = np.searchsorted(place[order], np.arange(len(places) + 1)).tolist()
    # One column at a time, so that no second copy of all of them is ever held.
    return places, starts, {name: columns.pop(name)[:filled][order] for name in names}


def _columns(table: pa.Table, names: dict[str, int], cuts: "_Cuts") -> Columns:
    slots = pc.dictionary_encode(table["slot"].combine_chunks())
    own = slots.dictionary.to_pylist()
    codes = np.array([names.setdefault(name, len(names)) for name in own], np.int32)
    index = slots.indices.to_numpy()
    full = table["binades"].is_valid().to_numpy()
    numel, nans = doubles(table, "numel"), doubles(table, "nans")
    posinfs, neginfs = doubles(table, "posinfs"), doubles(table, "neginfs")
    zeros = doubles(table, "zeros")
    finite = numel - nans - posinfs - neginfs
    nonzero = finite - zeros
    low, subnormal = cuts.counts(table, own, index)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = {
            "numel": numel,
            "nans": nans,
            "posinfs": posinfs,
            "neginfs": neginfs,
            "loss_scale": doubles(table, "loss_scale"),
            "zeros": zeros / numel,
            "flushed": low / nonzero,
            "subnormal": subnormal / nonzero,
            "rms": np.sqrt(doubles(table, "sumsq") / finite),
            "mean": doubles(table, "sum") / finite,
            "cast_scale": doubles(table, "cast_scale"),
            "cast_flushed": doubles(table, "cast_flushed") / nonzero,
            "cast_saturated": doubles(table, "cast_saturated") / nonzero,
        }
        columns = {name: column.astype(np.float32) for name, column in found.items()}
    return {
        **columns,
        "place": codes[index],
        "step": table["step"].to_numpy(),
        "full": full,
        "amax": doubles(table, "amax"),
    }


class _Cuts:
    """The binades at which each slot's format flushes and turns subnormal."""

    def __init__(self, slots: Mapping[str, SlotInfo]) -> None:
        self._slots = slots
        self._known: dict[str, tuple[int, int]] = {}

    def counts(
        self, table: pa.Table, names: list[str], index: npt.NDArray[Any]
    ) -> tuple[Doubles, Doubles]:
        """Returns how many elements of each row lie below either, without those below the first."""
        values = pc.list_flatten(table["binades"]).to_numpy()
        lengths = pc.fill_null(pc.list_value_length(table["binades"]), 0).to_numpy()
        sums = np.concatenate([[0], np.cumsum(values)])
        starts = np.cumsum(lengths) - lengths
        first = pc.fill_null(table["binade_first"], 0).to_numpy().astype(np.int64)
        cuts = np.array([self._of(name) for name in names], np.int64)[index]

        def below(cut: Ints) -> Doubles:
            inside = np.clip(cut - first, 0, lengths)
            counts: Doubles = (sums[starts + inside] - sums[starts]).astype(np.float64)
            return counts

        low = below(cuts[:, 0])
        return low, below(cuts[:, 1]) - low

    def _of(self, name: str) -> tuple[int, int]:
        if name not in self._known:
            fmt = judged_format(self._slots.get(name))
            never = -(1 << 14)
            self._known[name] = (
                (never, never)
                if fmt is None
                else (_exponent(fmt.flush_threshold), _exponent(fmt.smallest_normal))
            )
        return self._known[name]


def _exponent(power_of_two: float) -> int:
    return math.frexp(power_of_two)[1] - 1


def doubles(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """Returns a column of numbers as float64 [n], NaN where it is null."""
    numbers: npt.NDArray[np.float64] = pc.cast(table[name], pa.float64(), safe=False).to_numpy()
    return numbers
