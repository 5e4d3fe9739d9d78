"""The manifests: what a run was, one JSON file an attempt.

The first attempt's file is `manifest.json`, a resumed run adds `manifest-001.json` and so on.
Only the attempt's own process writes it, so no lock is needed on whatever file system.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from numwatch.record.errors import RecordError
from numwatch.record.files import MIB, open_new, read_at_most
from numwatch.record.schema import SCHEMA_VERSION
from numwatch.snapshot import SlotInfo

_NAME = re.compile(r"manifest(?:-([0-9]{3,6}))?\.json")
_LAST = 999_999
"""The last number of an attempt; its name's six digits."""

_SLOT_TYPES = {
    **dict.fromkeys(("slot", "module", "role", "module_class"), str),
    "shape": list | None,
    "dtype": str | None,
    "format": str | None,
    "order": int | None,
    "placement": str | None,
}
_ORDERS = 1 << 53
"""Orders are compared as doubles, and JSON's integers have no end."""
LARGEST = 64 * MIB
"""Bytes a manifest may have; one of 100,000 slots has about 20 million."""
_WRITTEN = tuple(field.name for field in fields(SlotInfo))
_values_of = attrgetter(*_WRITTEN)

Manifest = dict[str, Any]


class NewerRecordError(RecordError):
    """The record's schema is one this version does not know."""


def manifest_path(directory: Path, attempt: int) -> Path:
    """Returns where an attempt's manifest is."""
    return directory / (f"manifest-{attempt:03d}.json" if attempt else "manifest.json")


def attempts_in(directory: Path) -> list[int]:
    """Returns the numbers of the attempts that have a manifest, rising."""
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    attempts = {match[0]: int(match[1] or 0) for match in matches if match}
    # A number has one name: `manifest-0001.json` is none of numwatch's.
    return sorted(n for name, n in attempts.items() if name == manifest_path(directory, n).name)


def claim_attempt(directory: Path, manifest: Mapping[str, Any]) -> int:
    """Writes the manifest of the next attempt and returns that attempt's number.

    Of several processes that call this at once each gets a number of its own.

    Raises:
        OSError: The directory can't be written to, or no number is left.
    """
    while True:
        attempt = max(attempts_in(directory), default=-1) + 1
        if attempt > _LAST:
            raise OSError(errno.EOVERFLOW, f"{_LAST} is the last number of an attempt")
        content = {"schema": SCHEMA_VERSION, "attempt": attempt, **manifest}
        if _create(manifest_path(directory, attempt), content):
            return attempt


def rewrite(
    directory: Path, attempt: int, manifest: Mapping[str, Any], slots: Sequence[SlotInfo]
) -> None:
    """Replaces an attempt's manifest; a reader sees the old or the new one whole."""
    path = manifest_path(directory, attempt)
    content = {"schema": SCHEMA_VERSION, "attempt": attempt, **manifest}
    temporary = _write_temporary(path, content, slots)
    temporary.replace(path)


def read_manifest(path: Path) -> Manifest:
    """Returns one attempt's manifest.

    Raises:
        RecordError: It can't be read, is damaged, or a newer numwatch wrote it.
    """
    try:
        content = json.loads(read_at_most(path, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} can't be read as JSON ({_one_line(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise RecordError(f"{path} is not a numwatch manifest: it names no schema version")
    if content["schema"] > SCHEMA_VERSION:
        raise NewerRecordError(
            f"{path.parent} was written by a newer numwatch (schema {content['schema']}; this one "
            f"reads up to {SCHEMA_VERSION}): upgrade numwatch to read it"
        )
    return content


def read_slots(manifest: Manifest) -> tuple[list[SlotInfo], int]:
    """Returns the slots one attempt's manifest describes, and how many entries can't be read."""
    entries = manifest.get("slots", [])
    if not isinstance(entries, list):
        return [], 1
    slots = [_slot_info(entry) for entry in entries]
    return [slot for slot in slots if slot], slots.count(None)


def check_version(directory: Path) -> None:
    """Refuses a record that a newer numwatch wrote; a damaged manifest refuses nothing.

    Raises:
        NewerRecordError: An attempt's schema is newer than this version's.
    """
    for attempt in attempts_in(directory):
        try:
            read_manifest(manifest_path(directory, attempt))
        except NewerRecordError:  # noqa: PERF203  # each manifest is judged alone
            raise
        except RecordError:
            continue


def _slot_info(entry: Any) -> SlotInfo | None:
    if not isinstance(entry, dict):
        return None
    known = {name: entry[name] for name in _SLOT_TYPES if name in entry}
    if not all(isinstance(known.get(name), kind) for name, kind in _SLOT_TYPES.items()):
        return None
    if not abs(known.get("order") or 0) < _ORDERS:
        return None
    shape = known.get("shape")
    if not all(type(size) is int and 0 <= size < _ORDERS for size in shape or []):
        return None
    return SlotInfo(**{**known, "shape": None if shape is None else tuple(shape)})


def _create(path: Path, content: Manifest) -> bool:
    """Writes a new file whole; returns False where the file exists already."""
    temporary = _write_temporary(path, content, ())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here (FAT, some network mounts): claim the name, then fill it.
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_temporary(path: Path, content: Manifest, slots: Sequence[SlotInfo]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open_new(temporary) as file:
            file.writelines(piece.encode() for piece in _pieces(content, slots))
    except OSError:
        with suppress(OSError):  # the first error tells more
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def _pieces(content: Manifest, slots: Sequence[SlotInfo]) -> Iterator[str]:
    """Yields the text of a manifest, a slot a line: of thousands the whole would take memory."""
    yield json.dumps(content, indent=1, default=str).removesuffix("\n}")
    before = ',\n "slots": [\n  '
    for slot in slots:
        yield before + json.dumps(dict(zip(_WRITTEN, _values_of(slot), strict=True)))
        before = ",\n  "
    yield "\n ]\n}\n" if slots else ',\n "slots": []\n}\n'


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
