"""What of a step is left out where the disk is slower than the run: never its scalars."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numwatch.entries import Entries
from numwatch.snapshot import Snapshot

ENTRIES = ("updates", "states", "shadows", "operations", "ranks")
"""What a snapshot has beside packed arrays: small objects, some of them kept by column."""
ENTRY_BYTES = 512
"""What one object takes, all told."""
ROW_BYTES = 64
"""What a row takes beside its packed numbers."""


def bytes_of(snapshot: Snapshot) -> int:
    """Returns what a snapshot takes in memory beside its scalars, within a tenth."""
    rows, blocks = snapshot.rows, snapshot.blocks
    parts = () if rows is None else rows.parts
    size = sum(part.counts.nbytes + part.reals.nbytes + ROW_BYTES * len(part) for part in parts)
    size += 0 if blocks is None else blocks.counts.nbytes
    return size + sum(_bytes_of_entries(getattr(snapshot, name)) for name in ENTRIES)


def _bytes_of_entries(entries: Sequence[Any]) -> int:
    return entries.nbytes if isinstance(entries, Entries) else ENTRY_BYTES * len(entries)


def thinned(snapshot: Snapshot, room: int) -> tuple[Snapshot, Mapping[str, int]]:
    """Leaves out the rows of `tensors` where a snapshot is larger than `room` bytes.

    Where that is not enough all goes but the scalars.

    Returns:
        What is left, and how many rows of each table were left out; empty where all fits.
    """
    if bytes_of(snapshot) <= room:
        return snapshot, {}
    out = {"tensors": len(snapshot.rows or ())}
    snapshot = replace(snapshot, rows=None)
    if bytes_of(snapshot) > room:
        out["blocks"] = len(snapshot.blocks or ())
        out.update({name: len(getattr(snapshot, name)) for name in ENTRIES})
        snapshot = Snapshot(snapshot.step, snapshot.scalars)
    return snapshot, {name: count for name, count in out.items() if count}
