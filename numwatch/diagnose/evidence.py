"""`Evidence`: what the rules look at, read from a run once and laid out by slot and step."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.diagnose.columns import doubles, read_columns
from numwatch.record import Run
from numwatch.record.schema import TABLES
from numwatch.record.totals import Totals
from numwatch.snapshot import SlotInfo, role_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Found = TypeVar("Found")

_NONFINITE_RANKS = ("nonfinite_rank", "nonfinite_ranks")


@dataclass(frozen=True, eq=False)
class Series:
    """One slot over its recorded steps, by rising step; all arrays have n entries.

    Measured on every recorded step: `step` int64, `amax` float64 (of the finite elements, 0.0 of
    none), `numel`, `nans`, `posinfs`, `neginfs` float32 counts, `loss_scale` float32 (what
    gradients are multiplied by, 1.0 elsewhere).

    On full steps alone, NaN on the others (`full` bool tells which): share of all elements `zeros`;
    shares of the finite non-zero elements `flushed` (below what the slot's format can hold; always
    0 of tensors that were in the format before they were seen, `SlotInfo.rounded`) and `subnormal`
    (in its subnormals); `rms` and `mean` of the finite elements. Where a library casts the tensor
    itself `cast_flushed` and `cast_saturated` are shares of the finite non-zero elements and
    `cast_scale` is the scale in force.
    """

    step: Ints
    full: Bools
    numel: Floats
    nans: Floats
    posinfs: Floats
    neginfs: Floats
    amax: Doubles
    loss_scale: Floats
    zeros: Floats
    flushed: Floats
    subnormal: Floats
    rms: Floats
    mean: Floats
    cast_scale: Floats
    cast_flushed: Floats
    cast_saturated: Floats

    def __len__(self) -> int:
        return len(self.step)

    @property
    def nonfinite(self) -> Floats:
        """Count of NaN and infinite elements."""
        return self.nans + self.posinfs + self.neginfs

    @property
    def unscaled_amax(self) -> Doubles:
        """`amax` divided by the loss scale."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.amax / self.loss_scale

    def where(self, chosen: Bools | Ints) -> "Series":
        """Returns the chosen steps alone, told by a flag for each or by their places."""
        return Series(**{each.name: getattr(self, each.name)[chosen] for each in fields(self)})

    @cached_property
    def fully(self) -> "Series":
        """The full steps alone."""
        return self.where(self.full)


@dataclass(frozen=True, eq=False)
class Steps:
    """The `steps` table; all arrays have one entry a step, NaN where a number is missing.

    `loss_known` and `grad_norm_known` tell a NaN that was measured from a number that was not.
    """

    step: Ints
    epoch: Ints
    loss: Doubles
    loss_known: Bools
    lr: Doubles
    grad_norm: Doubles
    grad_norm_known: Bools
    scale_before: Doubles
    scale_after: Doubles
    found_inf: Bools
    skipped: Bools
    nonfinite_parameters: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.step)


class Evidence:
    """What was kept of a run, as rules ask for it.

    Attributes:
        run: The run.
        slots: Every slot that the manifest describes.
        steps: The steps.
    """

    def __init__(
        self, run: Run, progress: Callable[[int], None] | None = None, first: int | None = None
    ) -> None:
        """Reads the run.

        Args:
            run: The run.
            progress: Called with the number of rows read with each piece.
            first: First step that is looked at; None for all.
        """
        self.run = run
        self.slots: Mapping[str, SlotInfo] = run.slots
        self._first = first
        self.steps = _steps(run.steps(first=first))
        names = [each.name for each in fields(Series)]
        self._names, self._starts, self._columns = read_columns(run, names, progress, first)
        self._found: dict[Callable[[Evidence], Any], Any] = {}

    def once(self, find: Callable[["Evidence"], Found]) -> Found:
        """Returns what a function finds in this evidence; it is called once, however many ask."""
        if find not in self._found:
            self._found[find] = find(self)
        return cast("Found", self._found[find])

    def totals_at(self, steps: Iterable[int]) -> Totals:
        """Returns the totals of the rows of these steps, histograms included, read anew."""
        totals = Totals()
        for step in steps:
            for table in self.run.batches("tensors", first=step, last=step):
                totals.add(table)
        return totals

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The lines of `events.jsonl`."""
        events = self.run.events()
        return [each for each in events if self._first is None or each["step"] >= self._first]

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.get("kind") == kind]

    def series(self, slot: str) -> Series:
        """Returns a slot's steps; empty where none was recorded."""
        place = self._names.get(slot)
        start, end = (0, 0) if place is None else self._starts[place : place + 2]
        return Series(**{name: column[start:end] for name, column in self._columns.items()})

    @property
    def recorded(self) -> tuple[str, ...]:
        """The slots that have rows."""
        return tuple(self._names)

    def by_role(self, *roles: str) -> Iterator[tuple[str, SlotInfo | None, Series]]:
        """Yields the slots of these roles that have rows, in the order of a step's data flow."""
        for slot in self.in_order(name for name in self._names if role_of(name) in roles):
            yield slot, self.slots.get(slot), self.series(slot)

    def in_order(self, slots: Iterable[str]) -> list[str]:
        """Returns slots in the order in which a step computes them; unknown ones last."""
        return sorted(slots, key=lambda slot: (self.order(slot) is None, self.order(slot) or 0.0))

    def order(self, slot: str) -> float | None:
        """Returns where in the step's data flow a slot stands; None where not known."""
        info = self.slots.get(slot)
        return None if info is None or info.order is None else float(info.order)

    @cached_property
    def lost_updates(self) -> dict[tuple[str, str], dict[str, npt.NDArray[Any]]]:
        """The `updates` of the format that weights are stored in, by slot and storage.

        A column of each name, by rising step; numbers are float64, NaN for null, `step` is int64.
        """
        pieces = [
            table.filter(pc.field("lost"))
            for table in self.run.batches("updates", first=self._first)
        ]
        rows = pa.concat_tables([TABLES["updates"].empty_table(), *pieces])
        return _grouped(rows, ("slot", "storage"))

    @cached_property
    def states(self) -> dict[tuple[str], dict[str, npt.NDArray[Any]]]:
        """The `states` table by slot, likewise."""
        return _grouped(self.run.states(first=self._first), ("slot",))

    @cached_property
    def nonfinite_ranks(self) -> dict[tuple[int, str], tuple[int, int]]:
        """The first rank that held NaN or inf and how many did, by step and slot."""
        rows = self.run.ranks(first=self._first).filter(pc.field("nonfinite_ranks") > 0)
        columns = (rows[name].to_pylist() for name in ("step", "slot", *_NONFINITE_RANKS))
        lines = zip(*columns, strict=True)
        return {(step, slot): (rank, count) for step, slot, rank, count in lines}

    @cached_property
    def shadows(self) -> dict[tuple[str], dict[str, npt.NDArray[Any]]]:
        """The `shadows` table by slot, likewise."""
        return _grouped(self.run.shadows(first=self._first), ("slot",))


def evenly(steps: list[int], n: int) -> list[int]:
    """Returns at most n of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= n:
        return steps
    return [steps[round(i * (len(steps) - 1) / (n - 1))] for i in range(n)]


def _steps(table: pa.Table) -> Steps:
    named = [tuple(names or ()) for names in table["nonfinite_parameters"].to_pylist()]
    return Steps(
        step=table["step"].to_numpy(),
        epoch=table["epoch"].to_numpy(),
        loss=doubles(table, "loss"),
        loss_known=table["loss"].is_valid().to_numpy(),
        lr=doubles(table, "lr"),
        grad_norm=doubles(table, "grad_norm"),
        grad_norm_known=table["grad_norm"].is_valid().to_numpy(),
        scale_before=doubles(table, "loss_scale_before"),
        scale_after=doubles(table, "loss_scale_after"),
        found_inf=table["found_inf"].to_numpy(),
        skipped=table["skipped"].to_numpy(),
        nonfinite_parameters=tuple(named),
    )


def _grouped(table: pa.Table, keys: tuple[str, ...]) -> dict[Any, dict[str, npt.NDArray[Any]]]:
    table = table.sort_by([*((key, "ascending") for key in keys), ("step", "ascending")])
    names = [pc.dictionary_encode(table[key].combine_chunks()) for key in keys]
    codes = np.stack([name.indices.to_numpy() for name in names])
    starts = np.flatnonzero(np.diff(codes, axis=1, prepend=-1).any(axis=0)).tolist()
    columns: dict[str, npt.NDArray[Any]] = {}
    for field in table.schema:
        if pa.types.is_floating(field.type):
            columns[field.name] = doubles(table, field.name)
        elif pa.types.is_list(field.type):
            continue
        elif field.nullable and pa.types.is_boolean(field.type):
            columns[field.name] = pc.fill_null(table[field.name], False).to_numpy()  # noqa: FBT003
        elif pa.types.is_string(field.type):
            columns[field.name] = _strings(table[field.name])
        else:
            columns[field.name] = table[field.name].to_numpy()
    return {
        tuple(name[start].as_py() for name in names): {
            name: column[start:end] for name, column in columns.items()
        }
        for start, end in pairwise([*starts, table.num_rows])
    }


def _strings(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """Returns strings of which equal ones are one object."""
    encoded = pc.dictionary_encode(column.combine_chunks())
    known = np.array([*encoded.dictionary.to_pylist(), None], np.object_)
    strings: npt.NDArray[np.object_] = known[
        pc.fill_null(encoded.indices, len(known) - 1).to_numpy()
    ]
    return strings
