"""`Run`: what was kept of a run, its attempts joined."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from numwatch.errors import near, one_line
from numwatch.record.errors import RecordError
from numwatch.record.event_log import EVENTS, read_events
from numwatch.record.find import find_record
from numwatch.record.manifest import (
    Manifest,
    NewerRecordError,
    attempts_in,
    manifest_path,
    read_manifest,
    read_slots,
)
from numwatch.record.schema import SCHEMA_VERSION, TABLES
from numwatch.record.tables import Steps, Tables, slot_filter
from numwatch.snapshot import ROLES, SlotInfo

MAX_TOLD = 20
"""So many lines that can't be read are told one by one."""


def open_run(path: str | os.PathLike[str]) -> "Run":
    """Opens the record of a run, finished or still under way.

    Args:
        path: The record's folder, the log directory that holds it, or a directory below which
            there is just one.

    Raises:
        RecordError: No record is there, more than one is, its manifest can't be read, or a newer
            numwatch wrote it.
    """
    return Run(find_record(Path(path)))


class Run:
    """A record as it was when it was opened; open it again to see what came since.

    A resumed run goes through some steps twice. Of those only the last attempt's are kept here:
    what an earlier attempt wrote from the first step of a later one on is left out.

    Attributes:
        path: The record's folder.
        attempts: The manifest of each attempt, in order.
        problems: What of the record could not be read, a sentence each. Damage inside a part is
            noticed when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self._told: set[str] = set()
        self.attempts = self._read_manifests()
        self._tables = Tables(path, self._problem)

    @property
    def manifest(self) -> Manifest:
        """The schema version and all attempts' manifests."""
        return {"schema": SCHEMA_VERSION, "attempts": self.attempts}

    @cached_property
    def slots(self) -> dict[str, SlotInfo]:
        """Every slot of the run by name; where attempts differ, as the last one describes it."""
        found = {}
        for attempt in self.attempts:
            slots, unreadable = read_slots(attempt)
            found.update({slot.slot: slot for slot in slots})
            if unreadable:
                number = attempt.get("attempt")
                self._problem(f"attempt {number}: its manifest's slots can't all be read")
        return found

    @property
    def precision(self) -> str:
        """The precision of the last attempt, "unknown" where its manifest was lost."""
        return str(self.attempts[-1].get("precision", "unknown"))

    @property
    def device(self) -> str:
        """The device of the last attempt, "unknown" where its manifest was lost."""
        return str(self.attempts[-1].get("device", "unknown"))

    @property
    def flags(self) -> dict[str, Any]:
        """The switches for what GEMMs accumulate in, of the last attempt; empty where lost."""
        flags = self.attempts[-1].get("flags")
        return flags if isinstance(flags, dict) else {}

    def steps(self, *, first: int | None = None, last: int | None = None) -> pa.Table:
        """Returns the `steps` table, from step `first` to step `last`, both included."""
        return _joined("steps", self.batches("steps", first=first, last=last))

    def tensors(
        self,
        slot: str | None = None,
        *,
        module: str | None = None,
        role: str | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> pa.Table:
        """Returns the rows of the `tensors` table that fit all that is given.

        Raises:
            RecordError: The run has no such slot, module or role.
        """
        self._check_names(slot, module, role)
        wanted = slot_filter(slot, module, role)
        return _joined(
            "tensors", self._tables.pieces("tensors", first=first, last=last, wanted=wanted)
        )

    def tensor_batches(
        self, *, first: int | None = None, last: int | None = None
    ) -> Iterator[pa.Table]:
        """Yields the `tensors` table in pieces that fit into memory, in the order of steps."""
        return self.batches("tensors", first=first, last=last)

    def batches(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        steps: Steps | None = None,
    ) -> Iterator[pa.Table]:
        """Yields any table of `TABLES` in such pieces.

        Args:
            table: Its name.
            columns: Names of the columns that are read; all of them by default.
            first: First step.
            last: Last step.
            steps: Rising, int64; just these steps.
        """
        return self._tables.pieces(table, columns=columns, first=first, last=last, steps=steps)

    def rows(self, table: str) -> int:
        """Returns how many rows a table has, repeated steps of earlier attempts included."""
        return self._tables.rows(table)

    def ranks(self, *, first: int | None = None, last: int | None = None) -> pa.Table:
        """Returns the `ranks` table: whose numbers stood out where several processes trained."""
        return _joined("ranks", self.batches("ranks", first=first, last=last))

    def updates(self, *, first: int | None = None, last: int | None = None) -> pa.Table:
        """Returns the `updates` table: what each parameter's updates would lose in each format."""
        return _joined("updates", self.batches("updates", first=first, last=last))

    def states(self, *, first: int | None = None, last: int | None = None) -> pa.Table:
        """Returns the `states` table: the optimizer's state beside what `tensors` tells of it."""
        return _joined("states", self.batches("states", first=first, last=last))

    def shadows(self, *, first: int | None = None, last: int | None = None) -> pa.Table:
        """Returns the `shadows` table: gradients beside those of the same batch in FP32."""
        return _joined("shadows", self.batches("shadows", first=first, last=last))

    def blocks(
        self,
        slot: str | None = None,
        *,
        module: str | None = None,
        role: str | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> pa.Table:
        """Returns the `blocks` rows that fit all that is given: GEMM operands block by block.

        Raises:
            RecordError: The run has no such slot, module or role.
        """
        self._check_names(slot, module, role)
        wanted = slot_filter(slot, module, role)
        return _joined(
            "blocks", self._tables.pieces("blocks", first=first, last=last, wanted=wanted)
        )

    def operations(self, *, first: int | None = None, last: int | None = None) -> pa.Table:
        """Returns the `operations` table: what ran in the first step that was recorded whole."""
        return _joined("operations", self.batches("operations", first=first, last=last))

    def events(self) -> list[dict[str, Any]]:
        """Returns the lines of `events.jsonl`: attempt, step, kind and what belongs to the kind."""
        try:
            events, damaged = read_events(self.path)
        except OSError as error:
            self._problem(f"{EVENTS} can't be read ({error.strerror})")
            return []
        for number in damaged[:MAX_TOLD]:
            self._problem(f"{EVENTS} line {number} can't be read")
        if damaged[MAX_TOLD:]:
            self._problem(f"{len(damaged) - MAX_TOLD} more lines of {EVENTS} can't be read")
        ends = self._tables.ends
        return [e for e in events if e["step"] < ends.get(e["attempt"], e["step"] + 1)]

    def _read_manifests(self) -> list[Manifest]:
        attempts = []
        errors = []
        for attempt in attempts_in(self.path):
            try:
                attempts.append(read_manifest(manifest_path(self.path, attempt)))
            except NewerRecordError:  # noqa: PERF203  # one bad file costs only itself
                raise
            except RecordError as error:
                errors.append(error)
                self._problem(str(error))
                attempts.append({"attempt": attempt})
        if len(errors) == len(attempts):
            raise errors[0]
        return attempts

    def _check_names(self, slot: str | None, module: str | None, role: str | None) -> None:
        modules = [info.module for info in self.slots.values()]
        roles = dict.fromkeys([*ROLES, *(info.role for info in self.slots.values())])
        for kind, name, known in (
            ("slot", slot, list(self.slots)),
            ("module", module, modules),
            ("role", role, list(roles) if self.slots else []),
        ):
            # A run killed before it described its slots knows none; it may still have the rows.
            if name is not None and known and name not in known:
                raise RecordError(f"no {kind} {name!r} in {self.path}{near(name, known)}")

    def _problem(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.problems.append(one_line(text))


def _joined(name: str, pieces: Iterator[pa.Table]) -> pa.Table:
    return pa.concat_tables([TABLES[name].empty_table(), *pieces])
