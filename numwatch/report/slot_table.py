"""The worst slots of a summary as lines of text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from numwatch.report.columns import GAP, column_lines
from numwatch.report.figures import SlotFigures
from numwatch.report.text import (
    TIMES,
    UNKNOWN,
    amax_text,
    bits_text,
    bounded_text,
    nonfinite_text,
    shortened,
)

STYLES = {
    "overflow": "bold red",
    "all zero": "bold yellow",
    "underflow": "yellow",
    "tight": "cyan",
    "unknown": "dim",
    "ok": "green",
}
"""How each verdict is shown."""
SCALED_MARK = f"{TIMES}S"
"""Stands behind figures that are multiplied by the loss scale."""
_NARROWEST_SLOT = 16


@dataclass(frozen=True)
class _Column:
    head: str
    text: Callable[[SlotFigures], str]
    has: Callable[[SlotFigures], bool]
    justify: str = "r"


MEASURED_MARK = "="
"""Stands before a flushed share that a shadow step measured, where ~ stands before an estimate."""


def _flushed(line: SlotFigures) -> str:
    text = bounded_text(line.flushed, estimated=line.flushed_from == "estimate")
    return f"{MEASURED_MARK}{text}" if line.flushed_from == "shadow" else text


_COLUMNS = (
    _Column(
        "format", lambda line: line.format or UNKNOWN, lambda line: line.format is not None, "l"
    ),
    _Column("amax", lambda line: amax_text(line.amax), lambda _: True),
    _Column("", lambda line: SCALED_MARK if line.scaled else "", lambda line: line.scaled, "l"),
    _Column("flushed", _flushed, lambda line: line.flushed is not None),
    _Column(
        "subnormal",
        lambda line: bounded_text(line.subnormal),
        lambda line: line.subnormal is not None and line.subnormal.high > 0,
    ),
    _Column(
        "saturated",
        lambda line: bounded_text(line.saturated),
        lambda line: line.saturated is not None and line.saturated.high > 0,
    ),
    _Column("nan/inf", lambda line: nonfinite_text(line.nans, line.infs), lambda _: True),
    _Column(
        "headroom", lambda line: bits_text(line.headroom), lambda line: line.headroom is not None
    ),
)


def slot_lines(figures: Sequence[SlotFigures], width: int) -> list[Text]:
    """Returns a head and one line a slot, with the columns that have something to say.

    Slot names lose their beginnings where `width` cells are not enough.
    """
    columns = _shown(figures)
    texts = [[column.text(line) for column in columns] for line in figures]
    heads = [column.head for column in columns]
    taken = sum(max(map(len, column)) + GAP for column in zip(heads, *texts, strict=True))
    taken += max(len(line.verdict) for line in figures) + GAP
    room = max(width - taken, _NARROWEST_SLOT)
    rows = [
        [
            Text(shortened(line.slot, room), style="" if line.verdict == "ok" else "bold"),
            *(Text(text, style="dim" if text in ("0", UNKNOWN) else "") for text in row),
            Text(line.verdict, style=STYLES[line.verdict]),
        ]
        for line, row in zip(figures, texts, strict=True)
    ]
    justify = "".join(["l", *(column.justify for column in columns), "l"])
    return column_lines(["slot", *heads, ""], rows, justify)


def mark_notes(figures: Sequence[SlotFigures]) -> list[str]:
    """Returns what the marks in the table of these slots mean, of each mark that is in it."""
    columns = _shown(figures)
    heads = [column.head for column in columns]
    texts = {column.text(line) for column in columns for line in figures}
    notes = []
    if UNKNOWN in texts:
        notes.append(f"{UNKNOWN} not measured or not known")
    if SCALED_MARK in texts:
        notes.append(f"{SCALED_MARK} multiplied by the loss scale, as backward sees it")
    if any(line.flushed_from == "estimate" for line in figures):
        notes.append("~ flushed is estimated where tensors were seen after rounding to the format")
    if any(line.flushed_from == "shadow" for line in figures):
        notes.append(f"{MEASURED_MARK} flushed is measured by a shadow step, against the FP32 run")
    if any(_is_between_bounds(line) for line in figures):
        notes.append("~ of other figures: the format's limit lies inside a binade")
    if any(line.flushed_from == "cast" for line in figures):
        by_cast = "flushed and saturated" if "saturated" in heads else "flushed"
        notes.append(f"{by_cast} of float8 layers: by their own scaled cast")
    return notes


def _shown(figures: Sequence[SlotFigures]) -> list[_Column]:
    return [column for column in _COLUMNS if any(map(column.has, figures))]


def _is_between_bounds(line: SlotFigures) -> bool:
    counted = line.flushed if line.flushed_from == "counts" else None
    return any(
        bounded_text(share).startswith("~") for share in (counted, line.subnormal, line.saturated)
    )
