"""Where the record of a run is, given what a person has at hand."""

import os
from pathlib import Path

from numwatch.errors import near
from numwatch.record.errors import RecordError
from numwatch.record.manifest import attempts_in
from numwatch.record.schema import RECORD_FOLDER

# demo-run/lightning_logs/version_0/numwatch is three below what a person types.
SEARCH_DEPTH = 4
MAX_NAMED = 6


def find_record(path: Path) -> Path:
    """Returns the record's folder: `path` itself, its folder `numwatch`, or the one found below.

    Raises:
        RecordError: There is no such directory, no record in it, or more than one, or no right to
            look.
    """
    try:
        if not path.is_dir():
            raise RecordError(_not_a_directory(path))
        for candidate in (path, path / RECORD_FOLDER):
            if is_record(candidate):
                return candidate
        found = sorted(_records_below(path))
    except OSError as error:
        raise RecordError(f"can't look into {path}: {error.strerror}") from error
    if not found:
        raise RecordError(
            f"no record in or below {path}: a record is the folder '{RECORD_FOLDER}' with a "
            "manifest.json, which a watched run writes to its log directory"
        )
    if len(found) > 1:
        named = ", ".join(map(str, found[:MAX_NAMED])) + (", ..." if found[MAX_NAMED:] else "")
        raise RecordError(f"{len(found)} records below {path}: name one of {named}")
    return found[0]


def is_record(path: Path) -> bool:
    """Whether a folder holds a record."""
    return path.is_dir() and bool(attempts_in(path))


def _records_below(path: Path) -> list[Path]:
    found = []
    for folder, names, _ in os.walk(path):
        here = Path(folder)
        if is_record(here / RECORD_FOLDER):
            found.append(here / RECORD_FOLDER)
        deepest = len(here.relative_to(path).parts) >= SEARCH_DEPTH - 1
        # What os.walk finds in `names` is what it enters next.
        names[:] = [] if deepest else [n for n in names if n[0] != "." and n != RECORD_FOLDER]
    return found


def _not_a_directory(path: Path) -> str:
    if path.exists():
        return f"{path} is not a directory: name a run's log directory"
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return f"no such directory: {path}{near(path.name, [s.name for s in siblings if s.is_dir()])}"
