"""The histories of a run's GEMM operands, thinned so that any run fits into memory.

Read twice: few columns of all rows, then all columns of the steps that are looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.plan import OPERAND_ROLES
from numwatch.recommend.block_rows import Blocks, block_steps, read_blocks
from numwatch.recommend.history import PLAIN, History, Rows
from numwatch.recommend.thresholds import ROWS
from numwatch.record import Run
from numwatch.record.ahead import read_ahead
from numwatch.stats.histograms import Doubles, Ints, places_of

Columns = dict[str, npt.NDArray[Any]]
Places = Mapping[str, int]

_NONFINITES = ("nans", "posinfs", "neginfs")
# A row is full where it has a first binade: those that have none hold an amax alone.
_OVERVIEW = ("slot", "step", "amax", "loss_scale", "binade_first", *_NONFINITES)
_WHOLE = ("slot", "step", "loss_scale", "binade_first", "binades", *PLAIN)
_FOUND_TYPES = {
    "place": np.int32,
    "step": np.int64,
    "amax": np.float64,
    "full": np.bool_,
    "sound": np.bool_,
}
_ROW_TYPES = {
    **dict.fromkeys(("place", "step", "first", "length", "counts"), np.int64),
    **dict.fromkeys(("numel", "zeros", "pow2s"), np.int64),
    **dict.fromkeys(("loss_scale", "amax", "amin", "sum", "sumsq"), np.float64),
}


@dataclass(frozen=True, eq=False)
class _Found:
    """The recorded steps of an operand without a non-finite element, and how many have one."""

    step: Ints
    amax: Doubles
    full: npt.NDArray[np.bool_]
    nonfinite: int


def read_histories(run: Run, progress: Callable[[int], None] | None = None) -> dict[str, History]:
    """Returns the history of every operand of every GEMM, by slot, in the order of the manifest.

    Args:
        run: The run.
        progress: Called with the number of rows read with each piece.
    """
    infos = [info for info in run.slots.values() if info.role in OPERAND_ROLES]
    places = {info.slot: place for place, info in enumerate(infos)}
    found = _overview(run, places, progress)
    counted = block_steps(run)
    chosen = [_chosen(one, counted.get(slot)) for slot, one in zip(places, found, strict=True)]
    with_blocks = {
        slot: np.intersect1d(chosen[place], counted[slot]).tolist()
        for slot, place in places.items()
        if slot in counted
    }
    rows = _read_rows(run, places, chosen, read_blocks(run, with_blocks))
    return {
        info.slot: History(info.slot, info, own, one.step, one.amax, one.nonfinite)
        for info, one, own in zip(infos, found, rows, strict=True)
    }


def _overview(run: Run, places: Places, progress: Callable[[int], None] | None) -> list[_Found]:
    pieces = []
    for table in read_ahead(run.batches("tensors", columns=_OVERVIEW)):
        pieces.append(_looked_over(table, places))
        if progress is not None:
            progress(table.num_rows)
    columns = _joined(pieces, _FOUND_TYPES)
    place = columns.pop("place")
    # Steps rise already. NumPy sorts 16 bits in a tenth of the time.
    order = np.argsort(place.astype(np.int16) if len(places) < 1 << 15 else place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(places) + 1))
    step, amax, full, sound = (columns.pop(name)[order] for name in list(columns))
    found = []
    for start, end in pairwise(starts.tolist()):
        own = np.arange(start, end)
        kept = own[sound[own]]
        found.append(_Found(step[kept], amax[kept], full[kept], len(own) - len(kept)))
    return found


def _looked_over(table: pa.Table, places: Places) -> Columns:
    place = _places(table, places)
    own = place >= 0
    infinite = sum(table[name].to_numpy()[own] for name in _NONFINITES) > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        amax = table["amax"].to_numpy()[own] / table["loss_scale"].to_numpy()[own]
    return {
        "place": place[own],
        "step": table["step"].to_numpy()[own],
        "amax": amax,
        "full": table["binade_first"].is_valid().to_numpy()[own],
        "sound": ~infinite & np.isfinite(amax),
    }


def _chosen(found: _Found, counted: Ints | None) -> Ints:
    """The steps that are looked into: those with block counts are thinned apart from the others."""
    full = found.step[found.full]
    has_blocks = np.isin(full, np.zeros(0) if counted is None else counted)
    thinned = [kind[:: _every(len(kind))] for kind in (full[has_blocks], full[~has_blocks])]
    return np.sort(np.concatenate(thinned))


def _every(n: int) -> int:
    """The least power of two of which one in so many leaves fewer than twice `ROWS`."""
    every = 1
    while -(-n // every) >= 2 * ROWS:
        every *= 2
    return every


def _read_rows(
    run: Run, places: Places, chosen: list[Ints], blocks: Mapping[tuple[str, int], Blocks]
) -> list[Rows]:
    """The rows of the chosen steps of each operand."""
    steps = np.unique(np.concatenate([np.zeros(0, np.int64), *chosen]))
    wanted = np.zeros((len(places), len(steps)), np.bool_)
    for here, own in zip(wanted, chosen, strict=True):
        here[np.searchsorted(steps, own)] = True
    pieces = []
    for table in read_ahead(run.batches("tensors", columns=_WHOLE, steps=steps)):
        place = _places(table, places)
        at = np.searchsorted(steps, table["step"].to_numpy())
        kept = (place >= 0) & wanted[place, at] & table["binade_first"].is_valid().to_numpy()
        pieces.append(_whole_rows(table.filter(pa.array(kept)), place[kept]))
    columns = _joined(pieces, _ROW_TYPES)
    place, length, counts = (columns.pop(name) for name in ("place", "length", "counts"))
    order = np.lexsort((columns["step"], place))
    flat, ends = places_of((np.cumsum(length) - length)[order], length[order])
    columns = {name: values[order] for name, values in columns.items()}
    slots, place = list(places), place[order]
    keys = zip(place.tolist(), columns["step"].tolist(), strict=True)
    whole = Rows(
        counts=counts[flat],
        ends=ends,
        blocks=tuple(blocks.get((slots[at], step), {}) for at, step in keys),
        **columns,
    )
    starts = np.searchsorted(place, np.arange(len(places) + 1))
    return [whole.where(np.arange(start, end)) for start, end in pairwise(starts.tolist())]


def _whole_rows(table: pa.Table, place: Ints) -> Columns:
    return {
        "place": place,
        "first": table["binade_first"].to_numpy(),
        "length": pc.list_value_length(table["binades"]).to_numpy(),
        "counts": pc.list_flatten(table["binades"]).to_numpy(),
        **{name: table[name].to_numpy() for name in ("step", "loss_scale", *PLAIN)},
    }


def _places(table: pa.Table, places: Places) -> Ints:
    """The place of each row's slot, -1 of slots that are none of these."""
    slots = pc.dictionary_encode(table["slot"].combine_chunks())
    own = np.array([places.get(name, -1) for name in slots.dictionary.to_pylist()], np.int64)
    place: Ints = own[slots.indices.to_numpy()]
    return place


def _joined(pieces: list[Columns], types: Mapping[str, type]) -> Columns:
    """The columns of all pieces; each is let go of as it is joined."""
    return {
        name: np.concatenate(
            [np.zeros(0, kind), *(piece.pop(name) for piece in pieces)], dtype=kind
        )
        for name, kind in types.items()
    }
