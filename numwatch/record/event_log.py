"""`events.jsonl`: one JSON object a line, appended as things happen."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numwatch.record.files import MIB, lines_of

EVENTS = "events.jsonl"
LONGEST_LINE = MIB
LARGEST = 128 * MIB
"""Bytes that are read, at most; numwatch's own lines have some 150, and seldom a few thousand."""
_NUMBER, _COUNT, _NOTHING = (int, float), (int,), (type(None),)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "start": {"numwatch_seconds": _NUMBER},
    "memory": {"bytes": _COUNT},
    "collapse": {"scale": _NUMBER, "skipped_in_a_row": _COUNT, "zero_at_step": _COUNT + _NOTHING},
    "origin": {
        **dict.fromkeys(("phase", "module", "operation", "source", "value"), (str,)),
        **dict.fromkeys(("tensor", "note"), (str,)),
        "inputs": (list,),
    },
    "unseen": {"note": (str,)},
}
"""What readers rest on of some kinds: fields that are of these types wherever they are given."""
_INPUT = {
    "dtype": (str,),
    "low": _NUMBER + _NOTHING,
    "high": _NUMBER + _NOTHING,
    "nonfinite": _COUNT,
}
"""The same of what an operation took."""


def event_line(event: Mapping[str, Any]) -> bytes:
    """Returns an event as a line; values JSON does not know are kept as text."""
    return json.dumps(event, default=str).encode() + b"\n"


def append_lines(directory: Path, lines: Sequence[bytes]) -> None:
    """Appends events; they are on their way to disk when this returns.

    Raises:
        OSError: The disk is full or not writable; a part of them may be there.
    """
    with (directory / EVENTS).open("ab") as file:
        file.write(b"".join(lines))


def end_torn_line(directory: Path) -> None:
    """Ends a line that a killed process left half written, so that the next one stands alone."""
    path = directory / EVENTS
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        is_torn = file.read() != b"\n"
    if is_torn:
        append_lines(directory, [b"\n"])


def read_events(directory: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the events and the numbers (from 1) of the lines that can't be read.

    Reading ends at `LARGEST` bytes: the line there counts as one that can't be read.

    Raises:
        OSError: There is a file, and it can't be read.
    """
    path = directory / EVENTS
    events: list[dict[str, Any]] = []
    damaged: list[int] = []
    if not os.path.lexists(path):
        return events, damaged
    left = LARGEST
    for number, line in enumerate(lines_of(path, LONGEST_LINE), start=1):
        left -= LONGEST_LINE if line is None else len(line) + 1
        if left < 0:
            damaged.append(number)
            break
        event = None if line is None else _event(line)
        if event is not None:
            events.append(event)
        elif line is None or line.strip():
            damaged.append(number)
    return events, damaged


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and _is_whole(event) else None


def _is_whole(event: dict[str, Any]) -> bool:
    if not all(_is_of(event.get(name), _COUNT) for name in ("attempt", "step")):
        return False
    kind = event.get("kind")
    if not isinstance(kind, str) or not _fits(event, _FIELDS.get(kind, {})):
        return False
    inputs = event.get("inputs", []) if kind == "origin" else []
    return all(isinstance(taken, dict) and _fits(taken, _INPUT) for taken in inputs)


def _fits(entry: dict[str, Any], fields: dict[str, tuple[type, ...]]) -> bool:
    return all(_is_of(entry[name], kinds) for name, kinds in fields.items() if name in entry)


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    # To Python a bool is an int, and JSON's integers have no end.
    return type(value) in kinds and (type(value) is not int or abs(value) < 1 << 63)
