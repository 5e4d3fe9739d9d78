"""`Recorder`: keeps snapshots of one attempt at a run in a record on disk."""

import errno
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import pyarrow as pa

from numwatch.record.errors import RecordError
from numwatch.record.event_log import EVENTS, end_torn_line, event_line
from numwatch.record.files import check_own, is_own_folder
from numwatch.record.keeper import Event, Keeper, SlotTable
from numwatch.record.manifest import Manifest, check_version, claim_attempt
from numwatch.record.schema import TABLES
from numwatch.record.thinning import bytes_of, thinned
from numwatch.record.writer import Writer
from numwatch.snapshot import SlotInfo, Snapshot

FLUSH_SECONDS = 30.0
MAX_WAITING_BYTES = 24 << 20
"""What may wait for the writer's thread: 11,000 rows. Policy."""
_SLOW = (
    "numwatch can't write as fast as the run goes, so measured rows are left out of the record in "
    "%s (first %s of step %d). Each step's scalars are kept; events `thinned` tell what is not. A "
    "larger every_n_steps or a faster disk helps."
)


@final
class Recorder:
    """Writes one attempt's part files, manifest and events, in a thread of its own.

    What has been flushed survives any end of the process. Rows and events that failed to be written
    stay buffered, so a later flush can still write them; the next call tells of the failure.

    Where the disk is slower than the run, rows are left out (`thinned`), never a step's scalars,
    and nothing waits but `flush` and `close`. In memory are at most MAX_WAITING_BYTES of snapshots,
    or one step's where that alone is more; another step's that is being packed; PACK_BYTES of
    unpacked and MAX_PACKED_BYTES of packed rows (see `Keeper`), and Parquet's copy of the latter:
    34 MiB, or 10 MiB and twice a step's rows of 2.2 KiB. Scalars and events come on top, each half
    a KiB.

    A process that was forked off may call everything, and nothing happens.
    """

    def __init__(
        self, directory: Path, attempt: int, manifest: Manifest, flush_seconds: float
    ) -> None:
        self.directory = directory
        self.attempt = attempt
        self._writer = Writer(Keeper(directory, attempt, manifest, flush_seconds))
        # Holds the writer, not this: whoever forgets to close it loses nothing.
        self._abandoned = weakref.finalize(self, self._writer.abandon)
        self._closed = self._told_slow = False

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
        }
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            check_version(directory)
            _check_own(directory)
            end_torn_line(directory)
            attempt = claim_attempt(directory, manifest)
        return cls(directory, attempt, manifest, flush_seconds)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, snapshot: Snapshot) -> None:
        """Takes a snapshot; it is on disk after `flush_seconds`, or the next flush.

        Keeps the snapshot's arrays until they are packed: nobody may write to them after this.

        Raises:
            RecordError: Something before could not be written, or the recorder is closed.
        """
        if self._writer.elsewhere:
            return
        if self._closed:
            raise RecordError(f"the record in {self.directory} is closed: open a new attempt")
        waiting = self._writer.waiting
        # A writer with nothing to do takes a step of any size.
        room = MAX_WAITING_BYTES - waiting if waiting else bytes_of(snapshot)
        snapshot, left_out = thinned(snapshot, room)
        self._writer.put(snapshot, bytes_of(snapshot))
        if left_out:
            self._tell_thinned(snapshot.step, left_out)
        self._check(self._writer.take_error())

    def event(self, kind: str, step: int, **details: Any) -> None:
        """Appends a line to `events.jsonl`, without waiting for it to be there.

        Raises:
            RecordError: Something before could not be written.
        """
        if self._writer.elsewhere:
            return
        content = {"attempt": self.attempt, "step": step, "kind": kind, **details}
        self._writer.put(Event(event_line(content)))
        self._check(self._writer.take_error())

    def describe(self, slots: Sequence[SlotInfo]) -> None:
        """Puts the slot table into this attempt's manifest, in place of the one before.

        Raises:
            RecordError: Something before could not be written.
        """
        if self._writer.elsewhere:
            return
        self._writer.put(SlotTable(tuple(slots)))
        self._check(self._writer.take_error())

    def flush(self) -> None:
        """Waits until all that came so far is on its way to disk: rows, events and slots.

        Raises:
            RecordError: It can't be written.
        """
        if not self._writer.elsewhere:
            self._check(self._writer.flush())

    def close(self) -> None:
        """Flushes and takes no more; may be called again.

        Raises:
            RecordError: What is buffered can't be written.
        """
        if not self._closed and not self._writer.elsewhere:
            self._closed = True
            error = self._writer.close()
            self._abandoned.detach()
            self._check(error)

    def _tell_thinned(self, step: int, left_out: Mapping[str, int]) -> None:
        self.event("thinned", step, **left_out)
        if not self._told_slow:
            self._told_slow = True
            named = " and ".join(f"{count} rows of {name}" for name, count in left_out.items())
            text = _SLOW % (self.directory, named, step)
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    def _check(self, error: BaseException | None) -> None:
        if error is not None:
            raise RecordError(_failure(self.directory, error)) from error


def _check_own(directory: Path) -> None:
    """Refuses to write through links that a stranger's record may hold.

    Raises:
        OSError: Its events or a table's folder lie elsewhere.
    """
    if os.path.lexists(directory / EVENTS):
        check_own(directory / EVENTS)
    for name in TABLES:
        if os.path.lexists(directory / name) and not is_own_folder(directory / name):
            raise OSError(errno.ENOTDIR, f"{name} is no folder of its own")


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise RecordError(_failure(directory, error)) from error


def _failure(directory: Path, error: BaseException) -> str:
    return f"can't write the record in {directory}: {error}"


def _own_version() -> str:
    try:
        return version("numwatch")
    except PackageNotFoundError:
        return "unknown"
