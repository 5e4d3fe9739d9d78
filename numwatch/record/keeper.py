"""`Keeper`: what one attempt writes, in order. It knows no threads; one at a time may call it."""

import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from numwatch.record.event_log import append_lines, end_torn_line
from numwatch.record.manifest import Manifest, rewrite
from numwatch.record.pack import blocks_table, entries_table, steps_table, tensors_table
from numwatch.record.parts import write_part
from numwatch.record.schema import TABLES
from numwatch.record.spare_memory import give_back
from numwatch.record.thinning import ENTRIES, bytes_of
from numwatch.snapshot import SlotInfo, Snapshot

PACK_BYTES = 2 << 20
"""Snapshots are packed as soon as so many bytes of them wait: a thousand rows."""
MAX_PACKED_BYTES = 4 << 20
"""Packed tables are written as soon as they take so much: 11,000 full rows."""


@dataclass(frozen=True)
class Event:
    """A line of `events.jsonl`."""

    line: bytes


@dataclass(frozen=True)
class SlotTable:
    """The slots of an attempt, for its manifest."""

    slots: tuple[SlotInfo, ...]


Item = Snapshot | Event | SlotTable


class Keeper:
    """Packs snapshots soon after they came, and writes them as part files at each flush.

    What can't be written stays, to be tried again at the next flush. Beside one step's own arrays
    at most PACK_BYTES of unpacked and MAX_PACKED_BYTES of packed rows wait, and Parquet's copy of
    the part being written.

    Attributes:
        due: Whether the last snapshot calls for a flush.
    """

    def __init__(
        self, directory: Path, attempt: int, manifest: Manifest, flush_seconds: float
    ) -> None:
        self.directory, self.attempt = directory, attempt
        self._manifest = manifest
        self._undescribed: SlotTable | None = None
        self._flush_seconds, self._flushed_at = flush_seconds, time.monotonic()
        self._unpacked: list[Snapshot] = []
        self._unpacked_bytes = 0
        self._steps: list[Snapshot] = []
        self._packed: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._packed_bytes = 0
        self.due = False
        self._parts = dict.fromkeys(TABLES, 0)
        self._events: list[bytes] = []
        self._torn = False

    def take(self, item: Item) -> None:
        """Keeps an item; events and slots are written at once, snapshots at a flush.

        Whether that is `due` now is the caller's to ask: when it has let go of the snapshot, whose
        rows take more memory than they do packed.

        Raises:
            OSError: The disk is full or not writable; the item is kept nevertheless.
            pyarrow.ArrowException: A number has no place in its column; likewise.
        """
        if isinstance(item, Event):
            self._events.append(item.line)
            self._write_events()
        elif isinstance(item, SlotTable):
            self._undescribed = item
            self._write_manifest()
        else:
            self._unpacked.append(item)
            self._unpacked_bytes += bytes_of(item)
            if self._unpacked_bytes >= PACK_BYTES:
                self._pack()
            self.due = self._packed_bytes >= MAX_PACKED_BYTES or self.seconds_left() == 0.0

    def seconds_left(self) -> float | None:
        """Returns how long until a flush is due; None where no rows wait for one."""
        if not (self._unpacked or self._steps):
            return None
        return max(self._flushed_at + self._flush_seconds - time.monotonic(), 0.0)

    def flush(self) -> None:
        """Writes all that waits.

        Raises:
            OSError: The disk is full or not writable; what was not written still waits.
        """
        self._flushed_at, self.due = time.monotonic(), False
        self._write_events()
        self._write_manifest()
        self._pack()
        # Steps first: a reader lists them last and so finds the steps of all it found before.
        if self._steps:
            self._write_part("steps", steps_table(self._steps, self.attempt))
            self._steps = []
        for name, tables in self._packed.items():
            if tables:
                self._write_part(name, pa.concat_tables(tables))
                self._packed[name] = []
        self._packed_bytes = 0
        give_back()

    def _pack(self) -> None:
        some = self._unpacked
        if not some:
            return
        made = {"tensors": tensors_table(some, self.attempt)}
        if any(snapshot.blocks for snapshot in some):
            made["blocks"] = blocks_table(some, self.attempt)
        for name in ENTRIES:
            if any(getattr(snapshot, name) for snapshot in some):
                made[name] = entries_table(some, self.attempt, name)
        for name, table in made.items():
            if table.num_rows:
                self._packed[name].append(table)
                self._packed_bytes += table.nbytes
        self._steps += [Snapshot(snapshot.step, snapshot.scalars) for snapshot in some]
        self._unpacked, self._unpacked_bytes = [], 0

    def _write_part(self, name: str, table: pa.Table) -> None:
        write_part(self.directory, name, self.attempt, self._parts[name], table)
        self._parts[name] += 1

    def _write_events(self) -> None:
        if not self._events:
            return
        if self._torn:
            end_torn_line(self.directory)
        self._torn = True
        append_lines(self.directory, self._events)
        self._torn, self._events = False, []

    def _write_manifest(self) -> None:
        if self._undescribed is not None:
            rewrite(self.directory, self.attempt, self._manifest, self._undescribed.slots)
            self._undescribed = None
