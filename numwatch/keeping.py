"""Where the snapshots of an attempt go: to the record, to the views, and to a person."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from numwatch.record import Recorder, events_of
from numwatch.shadow import reason
from numwatch.snapshot import SlotInfo, Snapshot
from numwatch.telling import Telling


class View(Protocol):
    """A place beside the record where snapshots are shown as they come, such as TensorBoard."""

    def write(self, snapshot: Snapshot, slots: Mapping[str, SlotInfo], step: int) -> None:
        """Shows a snapshot at a step of the view's own axis."""


class Keeping:
    """Keeps and tells of one attempt.

    Attributes:
        recorder: Writes the record.
    """

    def __init__(
        self,
        directory: Path,
        console: Console | None,
        views: Callable[[], Sequence[View]],
        *,
        strict: bool = False,
        **about: Any,
    ) -> None:
        """Opens the record.

        Args:
            directory: The record's folder.
            console: Where summaries go; None for nowhere.
            views: Makes the places beside the record.
            strict: Raise what a view raises, instead of going on without it.
            about: What the manifest says of the run, see `Recorder.open`.
        """
        self.recorder = Recorder.open(directory, **about)
        self._telling = Telling(self.recorder, console)
        self._views, self._strict = views(), strict
        self._described: Sequence[SlotInfo] = ()
        self._by_name: dict[str, SlotInfo] = {}
        self._told_bytes = 0

    @property
    def critical(self) -> bool:
        """Whether something critical was found."""
        return self._telling.critical

    def keep(self, snapshots: Sequence[Snapshot], slots: Sequence[SlotInfo], size: int) -> None:
        """Takes the steps that have arrived.

        Args:
            snapshots: In the order of steps.
            slots: What is known of every slot by now; the same object until more is.
            size: What numwatch holds on the devices, in bytes.
        """
        if slots is not self._described:
            self._described = slots
            self._by_name = {slot.slot: slot for slot in slots}
            self.recorder.describe(slots)
        for snapshot in snapshots:
            self.recorder.write(snapshot)
            for kind, details in events_of(snapshot):
                self.recorder.event(kind, snapshot.step, **details)
            self._telling.see(snapshot)
            if _worth_showing(snapshot):
                self._show(snapshot)
            if size > self._told_bytes:
                self._told_bytes = size
                self.recorder.event("memory", snapshot.step, bytes=size)

    def end_step(self) -> None:
        """Diagnoses the run where a step has called for it."""
        self._telling.end_step()

    def end_epoch(self, epoch: int) -> None:
        """Flushes the record and prints the epoch's summary out of it."""
        self.recorder.flush()
        self._telling.end_epoch(epoch)

    def end(self) -> None:
        """Flushes, and prints the summary of the whole run."""
        self.recorder.flush()
        self._telling.end()

    def _show(self, snapshot: Snapshot) -> None:
        """Shows a snapshot; a view that fails, a tracking server that is gone, is shown no more."""
        for view in self._views:
            try:
                view.write(snapshot, self._by_name, snapshot.step)
            except Exception as error:  # noqa: PERF203  # one that fails costs only itself
                if self._strict:
                    raise
                self._views = [other for other in self._views if other is not view]
                warnings.warn(
                    f"numwatch draws no more charts in {type(view).__name__}, the record goes on "
                    f"({reason(error)}); strict=True raises such errors instead.",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _worth_showing(snapshot: Snapshot) -> bool:
    scalars = snapshot.scalars
    moved = scalars.loss_scale_after != scalars.loss_scale_before
    return snapshot.rows is not None or scalars.skipped or moved
