"""The tables of a record, its parts joined and its attempts too."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record.parts import DAMAGED, Part, open_part, part_files, read_part
from numwatch.record.schema import TABLES
from numwatch.record.spare_memory import give_back

Steps = npt.NDArray[np.int64]


class Tables:
    """Every part of a record as it was when it was opened.

    A resumed run goes through some steps twice. Of those only the last attempt's rows are told.

    Attributes:
        ends: The step from which on a later attempt holds instead, by attempt.
    """

    def __init__(self, directory: Path, problem: Callable[[str], None]) -> None:
        """Reads the parts' footers.

        Args:
            directory: The record's folder.
            problem: Told what can't be read, now or later.
        """
        self._directory, self._problem = directory, problem
        # Steps last, which the writer flushes first: a run that goes on meanwhile shows no rows
        # here whose step is missing.
        in_order = sorted(TABLES, key=lambda name: name == "steps")
        self._parts = {name: self._open_parts(name) for name in in_order}
        self.ends = _ends([part for parts in self._parts.values() for part in parts])

    def rows(self, name: str) -> int:
        """Returns how many rows a table has, repeated steps of earlier attempts included."""
        return sum(part.rows for part in self._parts[name])

    def pieces(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        steps: Steps | None = None,
        wanted: pc.Expression | None = None,
    ) -> Iterator[pa.Table]:
        """Yields a table part by part, without empty pieces.

        Args:
            name: Of the table.
            columns: Names of the columns; all of them by default.
            first: First step.
            last: Last step.
            steps: Rising; the steps wanted, None for all.
            wanted: What else holds of the rows; asks for no other columns.
        """
        names = list(TABLES[name].names if columns is None else columns)
        read = names if "step" in names else [*names, "step"]
        for part in self._parts[name]:
            chosen = _Chosen(part, first, last, self.ends.get(part.attempt), steps)
            if chosen.empty:
                continue
            try:
                table = read_part(part, read)
            except DAMAGED as error:
                self._skip(part.path, error)
                continue
            for condition in (chosen.condition, wanted):
                table = table if condition is None else table.filter(condition)
            if table.num_rows:
                yield table.select(names)
            del table
            give_back()

    def _open_parts(self, name: str) -> list[Part]:
        parts = []
        for path, attempt, number in part_files(self._directory, name):
            try:
                parts.append(open_part(path, name, attempt, number))
            except DAMAGED as error:  # noqa: PERF203  # one bad file costs only itself
                self._skip(path, error)
        return parts

    def _skip(self, path: Path, error: BaseException) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self._problem(f"{path.relative_to(self._directory)} is damaged and left out ({reason})")


class _Chosen:
    """The steps of a part that are wanted.

    Attributes:
        empty: Whether it has none of them.
        condition: What holds of their rows; None where it has no others.
    """

    def __init__(
        self, part: Part, first: int | None, last: int | None, end: int | None, steps: Steps | None
    ) -> None:
        self.empty = (
            (last is not None and part.first > last)
            or (first is not None and part.last < first)
            or (end is not None and part.first >= end)
        )
        column, conditions = pc.field("step"), []
        if first is not None and part.first < first:
            conditions.append(column >= first)
        if last is not None and part.last > last:
            conditions.append(column <= last)
        if end is not None and part.last >= end:
            conditions.append(column < end)
        if steps is not None:
            inside = steps[np.searchsorted(steps, part.first) :]
            inside = inside[: np.searchsorted(inside, part.last, side="right")]
            self.empty = self.empty or not len(inside)
            conditions.append(column.isin(pa.array(inside)))
        self.condition = all_of(conditions)


def slot_filter(slot: str | None, module: str | None, role: str | None) -> pc.Expression | None:
    """Returns what holds of the rows of a slot, a module and a role; None where none is given."""
    column = pc.field("slot")
    conditions = []
    if slot is not None:
        conditions.append(column == slot)
    if module is not None:
        conditions.append(pc.starts_with(column, f"{module}:"))
    if role is not None:
        conditions.append(pc.ends_with(column, f":{role}"))
    return all_of(conditions)


def all_of(conditions: Sequence[pc.Expression]) -> pc.Expression | None:
    """Returns the conjunction of conditions; None where there is none."""
    joined = None
    for condition in conditions:
        joined = condition if joined is None else joined & condition
    return joined


def _ends(parts: Sequence[Part]) -> dict[int, int]:
    """Maps an attempt to the step from which on a later attempt holds instead."""
    firsts: dict[int, int] = {}
    for part in parts:
        firsts[part.attempt] = min(part.first, firsts.get(part.attempt, part.first))
    ends = {}
    end = None
    for attempt in sorted(firsts, reverse=True):
        if end is not None:
            ends[attempt] = end
        end = firsts[attempt] if end is None else min(end, firsts[attempt])
    return ends
