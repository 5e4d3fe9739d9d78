"""`Recorder`: keeps snapshots of one attempt at a run in a record on disk."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import pyarrow as pa

from numwatch.record.errors import RecordError
from numwatch.record.event_log import append_event, end_torn_line
from numwatch.record.manifest import (
    Manifest,
    check_version,
    claim_attempt,
    rewrite,
)
from numwatch.record.pack import blocks_table, entries_table, steps_table, tensors_table
from numwatch.record.parts import write_part
from numwatch.record.schema import TABLES
from numwatch.snapshot import SlotInfo, Snapshot

FLUSH_SECONDS = 30.0
# A packed row takes 2 KiB, so this bounds what waits in memory to 32 MiB and a few steps; one of
# blocks counts for seven.
MAX_BUFFERED_ROWS = 16_384
_ENTRIES = ("updates", "states", "shadows", "operations")


@final
class Recorder:
    """Writes one attempt's part files, manifest and events.

    What has been flushed survives any end of the process; events are flushed one by one. Rows that
    failed to be written stay buffered, so a later flush can still write them.
    """

    def __init__(
        self, directory: Path, attempt: int, manifest: Manifest, flush_seconds: float
    ) -> None:
        self.directory = directory
        self.attempt = attempt
        self._manifest = manifest
        self._flush_seconds = flush_seconds
        self._flushed_at = time.monotonic()
        self._buffered: dict[str, list[Snapshot]] = {name: [] for name in TABLES}
        self._buffered_rows = 0
        self._parts = dict.fromkeys(TABLES, 0)
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        precision: str,
        device: str,
        arguments: Mapping[str, Any],
        versions: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> "Recorder":
        """Starts a record in `directory`, or the next attempt of the one that is there.

        Args:
            directory: The record's own folder, made where it is missing.
            precision: As Lightning names it, "16-mixed".
            device: What the run computes on.
            arguments: What the user chose; values JSON does not know are kept as text.
            versions: Versions of what matters to the run.
            flags: torch's switches for what GEMMs accumulate in.
            flush_seconds: A write flushes when the last flush is at least so long ago.

        Raises:
            RecordError: The directory can't be written to, or a newer numwatch wrote the record.
        """
        manifest = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "precision": precision,
            "device": device,
            "arguments": dict(arguments),
            "versions": {"numwatch": _own_version(), **(versions or {})},
            "flags": dict(flags or {}),
            "slots": [],
        }
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            check_version(directory)
            end_torn_line(directory)
            attempt = claim_attempt(directory, manifest)
        return cls(directory, attempt, manifest, flush_seconds)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, snapshot: Snapshot) -> None:
        """Takes a snapshot, and flushes when it is time to.

        Keeps the snapshot's arrays until they are flushed: nobody may write to them after this.

        Raises:
            RecordError: A flush failed, or the recorder is closed.
        """
        if self._closed:
            raise RecordError(f"the record in {self.directory} is closed: open a new attempt")
        self._buffered["steps"].append(snapshot)
        if snapshot.rows:
            self._buffered["tensors"].append(snapshot)
            self._buffered_rows += len(snapshot.rows)
        if snapshot.blocks:
            self._buffered["blocks"].append(snapshot)
            self._buffered_rows += 7 * len(snapshot.blocks)
        for name in _ENTRIES:
            if entries := getattr(snapshot, name):
                self._buffered[name].append(snapshot)
                self._buffered_rows += len(entries)
        overdue = time.monotonic() - self._flushed_at >= self._flush_seconds
        if overdue or self._buffered_rows >= MAX_BUFFERED_ROWS:
            self.flush()

    def event(self, kind: str, step: int, **details: Any) -> None:
        """Appends a line to `events.jsonl` at once.

        Raises:
            RecordError: It can't be written.
        """
        with _writing(self.directory):
            append_event(
                self.directory, {"attempt": self.attempt, "step": step, "kind": kind, **details}
            )

    def describe(self, slots: Sequence[SlotInfo]) -> None:
        """Puts the slot table into this attempt's manifest, in place of the one before.

        Raises:
            RecordError: It can't be written.
        """
        self._manifest = {**self._manifest, "slots": [asdict(slot) for slot in slots]}
        with _writing(self.directory):
            rewrite(self.directory, self.attempt, self._manifest)

    def flush(self) -> None:
        """Writes all that is buffered as new part files.

        Raises:
            RecordError: They can't be written.
        """
        with _writing(self.directory):
            # Steps first: a reader lists them last and so finds the steps of all it found before.
            for name in ("steps", "tensors", "blocks", *_ENTRIES):
                if self._buffered[name]:
                    self._write_part(name)
            self._buffered_rows = 0
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Flushes and takes no more; may be called again.

        Raises:
            RecordError: What is buffered can't be written.
        """
        if not self._closed:
            self._closed = True
            self.flush()

    def _write_part(self, name: str) -> None:
        table = _table(name, self._buffered[name], self.attempt)
        write_part(self.directory, name, self.attempt, self._parts[name], table)
        self._parts[name] += 1
        self._buffered[name] = []


def _table(name: str, snapshots: Sequence[Snapshot], attempt: int) -> pa.Table:
    if name == "steps":
        return steps_table(snapshots, attempt)
    if name == "tensors":
        return tensors_table(snapshots, attempt)
    if name == "blocks":
        return blocks_table(snapshots, attempt)
    return entries_table(snapshots, attempt, name)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"can't write the record in {directory}: {error}") from error


def _own_version() -> str:
    try:
        return version("numwatch")
    except PackageNotFoundError:
        return "unknown"
