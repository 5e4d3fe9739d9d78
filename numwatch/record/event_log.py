"""`events.jsonl`: one JSON object a line, appended as things happen."""

import json
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


def append_event(directory: Path, event: dict[str, Any]) -> None:
    """Appends an event; it is on its way to disk when this returns.

    Raises:
        OSError: The disk is full or not writable.
    """
    with (directory / EVENTS).open("ab") as file:
        file.write(json.dumps(event, default=str).encode() + b"\n")


def end_torn_line(directory: Path) -> None:
    """Ends a line that a killed process left half written, so that the next one stands alone."""
    path = directory / EVENTS
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def read_events(directory: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the events and the numbers (from 1) of the lines that can't be read."""
    path = directory / EVENTS
    events, damaged = [], []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and _is_whole(event):
            events.append(event)
        elif line.strip():
            damaged.append(number)
    return events, damaged


def _is_whole(event: dict[str, Any]) -> bool:
    numbers = all(type(event.get(name)) is int for name in ("attempt", "step"))
    return numbers and isinstance(event.get("kind"), str)
