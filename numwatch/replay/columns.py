"""The rows of the `tensors` table that a replay looks at, as columns, read once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record import Run
from numwatch.snapshot import role_of

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]

FINITE, NAN, INF = 0, 1, 2
"""What a row's `kind` says: nothing that is not finite; NaNs alone; infinities."""


@dataclass(frozen=True, eq=False)
class Columns:
    """n rows, of which m are full, in the order in which they were read.

    Attributes:
        places: The number of each slot.
        place: Int32 [n], the slot of each row.
        step: Int64 [n].
        amax: Float64 [n], as seen.
        loss_scale: Float64 [n].
        kind: Int8 [n].
        merged: Bool [n], whether a row holds several calls' tensors.
        full: Bool [n], whether the row has a histogram.
        at: Int32 [n], of a full row its place among the full ones.
        counts: All binades of all full rows, one after the other.
        begin: Int64 [m], where in `counts` a row's begin.
        length: Int64 [m], how many those are.
        first: Int64 [m], the exponent of the first of them.
        pow2s: Int64 [m].
        amin: Float64 [m].
        zeros: Int64 [m].
    """

    places: dict[str, int]
    place: npt.NDArray[np.int32]
    step: Ints
    amax: Doubles
    loss_scale: Doubles
    kind: npt.NDArray[np.int8]
    merged: Bools
    full: Bools
    at: npt.NDArray[np.int32]
    counts: npt.NDArray[Any]
    begin: Ints
    length: Ints
    first: Ints
    pow2s: Ints
    amin: Doubles
    zeros: Ints


def read_columns(
    run: Run, roles: Collection[str], progress: Callable[[int], None] | None = None
) -> Columns:
    """Returns the rows of all slots in some roles.

    Args:
        run: The run.
        roles: The roles wanted.
        progress: Called with the number of rows read with each piece.
    """
    places: dict[str, int] = {}
    pieces: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _TYPES}
    for table in run.tensor_batches():
        for name, values in _piece(table, roles, places).items():
            pieces[name].append(values)
        if progress is not None:
            progress(table.num_rows)
    # One column at a time, so that no second copy of all of them is ever held.
    whole = {
        name: np.concatenate([np.zeros(0, kind), *pieces.pop(name)])
        for name, kind in _TYPES.items()
    }
    length = whole["length"] = whole["length"].astype(np.int64)
    at = (np.cumsum(whole["full"]) - 1).astype(np.int32)
    return Columns(places=places, begin=np.cumsum(length) - length, at=at, **whole)


_TYPES: dict[str, type] = {
    "place": np.int32,
    "step": np.int64,
    "amax": np.float64,
    "loss_scale": np.float64,
    "kind": np.int8,
    "merged": np.bool_,
    "full": np.bool_,
    "counts": np.uint32,
    "length": np.int32,
    "first": np.int64,
    "pow2s": np.int64,
    "amin": np.float64,
    "zeros": np.int64,
}


def _piece(table: pa.Table, roles: Collection[str], places: dict[str, int]) -> Arrays:
    slots = pc.dictionary_encode(table["slot"].combine_chunks())
    names = slots.dictionary.to_pylist()
    wanted = np.array([role_of(name) in roles for name in names], np.bool_)
    index = slots.indices.to_numpy()
    if not wanted.all():
        kept = wanted[index]
        table, index = table.filter(pa.array(kept)), index[kept]
    own = [
        places.setdefault(name, len(places)) if take else -1
        for name, take in zip(names, wanted, strict=True)
    ]
    full = table["binades"].is_valid().to_numpy()
    infinite = (table["posinfs"].to_numpy() + table["neginfs"].to_numpy()) > 0
    rows = table.filter(pa.array(full))
    counts = pc.list_flatten(rows["binades"]).to_numpy()
    if counts.max(initial=0) <= np.iinfo(np.uint32).max:
        counts = counts.astype(np.uint32)
    return {
        "place": np.array(own, np.int32)[index],
        "step": table["step"].to_numpy(),
        "amax": table["amax"].to_numpy(),
        "loss_scale": table["loss_scale"].to_numpy(),
        "kind": np.where(infinite, INF, np.where(table["nans"].to_numpy() > 0, NAN, FINITE)).astype(
            np.int8
        ),
        "merged": table["calls"].to_numpy() > 1,
        "full": full,
        "counts": counts,
        "length": pc.list_value_length(rows["binades"]).to_numpy(),
        "first": rows["binade_first"].to_numpy().astype(np.int64),
        "pow2s": rows["pow2s"].to_numpy(),
        "amin": rows["amin"].to_numpy(),
        "zeros": rows["zeros"].to_numpy(),
    }
