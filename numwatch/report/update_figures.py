"""What storing weights in each format does to their updates, over many steps."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record.ahead import joined
from numwatch.report.parameter_slots import storage_order
from numwatch.snapshot import path_of

_SHARES = ("ratio", "swallowed", "stochastic_kept", "deferred", "edq_normalised")
_KEY = ("slot", "storage", "lost")
_PIECES = 64
"""So many pieces are merged at once."""

Key = tuple[str, str, bool]


@dataclass(frozen=True)
class ParameterUpdates:
    """The updates of one parameter judged for one storage format; None where not defined.

    Averages over steps count each step by its non-zero updates. For their meaning see
    `numwatch.step_entries.Update`.

    Attributes:
        lost: Whether the weights are stored in this format, so that what is swallowed is gone.
        steps: Steps measured.
        updates: Non-zero updates seen in them.
        intended: "estimate" where one step's was, "applied" where all were, else "exact".
        sampled: Whether some elements were left out.
    """

    parameter: str
    storage: str
    lost: bool
    steps: int
    updates: int
    ratio: float | None
    swallowed: float | None
    stochastic_kept: float | None
    deferred: float | None
    edq_normalised: float | None
    intended: str
    sampled: bool


@dataclass(frozen=True)
class StorageUpdates:
    """The same over all parameters for which `lost` is alike.

    Attributes:
        parameters: How many.
        updates: Their non-zero updates; averages count each parameter by its own.
        worst: The parameter with the largest share swallowed, None without any update.
        worst_swallowed: That share.
        estimated: Whether any intended update is an estimate.
    """

    storage: str
    lost: bool
    parameters: int
    updates: int
    swallowed: float | None
    stochastic_kept: float | None
    deferred: float | None
    edq_normalised: float | None
    worst: str | None
    worst_swallowed: float | None
    estimated: bool


@dataclass(frozen=True)
class Updates:
    """All there is to say of a run's updates.

    Attributes:
        low_format: The 16-bit format the modules compute in, of which FP32 weights have a copy;
            None where there is none.
        storages: Each format, what is lost first and the run's own format before others.
        parameters: Each parameter in each format, formats in the same order, the worst first.
    """

    low_format: str | None
    storages: tuple[StorageUpdates, ...]
    parameters: tuple[ParameterUpdates, ...]


def read_updates(tables: Iterable[pa.Table], low_format: str | None) -> Updates | None:
    """Returns what pieces of the `updates` table say; None where there is no row."""
    sums = dict(_sums(tables))
    if not sums:
        return None

    def rank(storage: str, *, lost: bool) -> tuple[bool, tuple[int, str]]:
        return (not lost, storage_order(storage, low_format))

    kinds: dict[tuple[str, bool], dict[Key, _Sums]] = defaultdict(dict)
    for key, found in sums.items():
        kinds[key[1:]][key] = found
    ordered = sorted(kinds.items(), key=lambda kind: rank(kind[0][0], lost=kind[0][1]))
    parameters = [_parameter(*item) for _, members in ordered for item in members.items()]
    return Updates(
        low_format=low_format,
        storages=tuple(_storage(kind, members) for kind, members in ordered),
        parameters=tuple(
            sorted(
                parameters,
                key=lambda line: (*rank(line.storage, lost=line.lost), -(line.swallowed or 0.0)),
            )
        ),
    )


@dataclass
class _Sums:
    """Sums over the rows of a parameter and a storage: shares times updates, and the updates."""

    steps: int = 0
    updates: int = 0
    products: npt.NDArray[np.float64] | float = 0.0
    weights: npt.NDArray[np.float64] | float = 0.0
    estimated: bool = False
    applied: bool = True
    sampled: bool = False

    def add(self, other: "_Sums") -> None:
        self.steps += other.steps
        self.updates += other.updates
        self.products = self.products + other.products
        self.weights = self.weights + other.weights
        self.estimated |= other.estimated
        self.applied &= other.applied
        self.sampled |= other.sampled

    def shares(self) -> dict[str, float | None]:
        products, weights = np.atleast_1d(self.products), np.atleast_1d(self.weights)
        return {
            name: float(product / weight) if weight else None
            for name, product, weight in zip(_SHARES, products, weights, strict=True)
        }


def _sums(tables: Iterable[pa.Table]) -> Iterable[tuple[Key, _Sums]]:
    """Yields the sums of each parameter and storage over all pieces, in order of appearance."""
    pieces: list[pa.Table] = []
    for table in joined(tables):
        pieces.append(_grouped(_columns(table)))
        if len(pieces) == _PIECES:
            pieces = [_grouped(pa.concat_tables(pieces))]
    for row in _grouped(pa.concat_tables(pieces)).to_pylist() if pieces else ():
        yield (
            (row["slot"], row["storage"], row["lost"]),
            _Sums(
                steps=row["steps"],
                updates=row["nonzero"],
                products=np.array([row[f"{name}_product"] for name in _SHARES], np.float64),
                weights=np.array([row[f"{name}_weight"] for name in _SHARES], np.float64),
                estimated=row["estimated"],
                applied=row["applied"],
                sampled=row["sampled"],
            ),
        )


def _grouped(columns: pa.Table) -> pa.Table:
    """Merges the lines of a parameter and a storage; lines that were merged merge again."""
    how = {name: "sum" for name in columns.column_names if name not in _KEY}
    how |= {"estimated": "any", "applied": "all", "sampled": "any"}
    merged = columns.group_by(list(_KEY), use_threads=False).aggregate(list(how.items()))
    return merged.select([*_KEY, *(f"{name}_{kind}" for name, kind in how.items())]).rename_columns(
        [*_KEY, *how]
    )


def _columns(table: pa.Table) -> pa.Table:
    """Returns for each row what is summed."""
    columns = {name: table[name] for name in ("slot", "storage", "nonzero")}
    columns["steps"] = pa.array(np.ones(table.num_rows, np.int64))
    columns["lost"] = pc.fill_null(table["lost"], False)  # noqa: FBT003  # a value, not a switch
    columns["estimated"] = pc.fill_null(pc.equal(table["intended"], "estimate"), False)  # noqa: FBT003
    columns["applied"] = pc.fill_null(pc.equal(table["intended"], "applied"), False)  # noqa: FBT003
    columns["sampled"] = pc.fill_null(pc.less(table["sampled"], table["numel"]), False)  # noqa: FBT003
    for name in _SHARES:
        # Infinite shares of a run that diverged would hide all others.
        known = pc.fill_null(pc.is_finite(table[name]), False)  # noqa: FBT003
        weight = pc.if_else(known, table["nonzero"], 0)
        columns[f"{name}_weight"] = weight
        columns[f"{name}_product"] = pc.if_else(known, pc.multiply(table[name], weight), 0.0)
    return pa.table(columns)


def _parameter(key: Key, sums: _Sums) -> ParameterUpdates:
    slot, storage, lost = key
    whole = "applied" if sums.applied else "exact"
    return ParameterUpdates(
        parameter=path_of(slot),
        storage=storage,
        lost=lost,
        steps=sums.steps,
        updates=sums.updates,
        intended="estimate" if sums.estimated else whole,
        sampled=sums.sampled,
        **sums.shares(),
    )


def _storage(kind: tuple[str, bool], members: dict[Key, _Sums]) -> StorageUpdates:
    total = _Sums()
    for sums in members.values():
        total.add(sums)
    shares = total.shares()
    swallowed = {key[0]: sums.shares()["swallowed"] for key, sums in members.items()}
    known = {slot: share for slot, share in swallowed.items() if share is not None}
    worst = max(known, key=lambda slot: known[slot], default=None)
    return StorageUpdates(
        storage=kind[0],
        lost=kind[1],
        parameters=len(members),
        updates=total.updates,
        swallowed=shares["swallowed"],
        stochastic_kept=shares["stochastic_kept"],
        deferred=shares["deferred"],
        edq_normalised=shares["edq_normalised"],
        worst=None if worst is None else path_of(worst),
        worst_swallowed=None if worst is None else known[worst],
        estimated=total.estimated,
    )
