"""Plans on disk: written whole, read within limits."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from numwatch.errors import NumwatchError
from numwatch.plan.types import Plan
from numwatch.plan.yaml_reading import parse_plan
from numwatch.plan.yaml_text import plan_text

LARGEST = 32 * 2**20
"""Bytes a plan may have; one of 10,000 modules with all its figures has about 9 million."""


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes the plan, whole or not at all; what stood there before is replaced.

    Raises:
        NumwatchError: The path can't be written, or the plan holds what has no text.
    """
    path = Path(path)
    content = plan_text(plan).encode()
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.unlink(missing_ok=True)  # it may be a link to elsewhere
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        raise NumwatchError(f"{path}: can't write the plan: {error.strerror}") from error
    finally:
        with suppress(OSError):  # the error that matters is already on its way
            temporary.unlink(missing_ok=True)


def load_plan(path: str | Path) -> Plan:
    """Returns the plan in a file that `Plan.save` or a person wrote.

    Raises:
        NumwatchError: There is none, or it is not in order: one line that says where, what is
            allowed, what came and which allowed names are near.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # Not by its stated size, which a device or a growing file does not have.
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise NumwatchError(f"{path}: can't read a plan: {error.strerror}") from error
    if len(content) > LARGEST:
        raise NumwatchError(f"{path}: a plan has at most {LARGEST // 2**20} MiB; this is larger")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NumwatchError(
            f"{path}: a plan is text in UTF-8; byte {error.start} is none"
        ) from error
    return parse_plan(text, str(path))
