"""The table of formats in the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from numwatch.report.columns import column_lines
from numwatch.report.text import UNKNOWN

_HEAD = (
    "format",
    "bits",
    "e/m",
    "max",
    "min normal",
    "min subnormal",
    "eps",
    "flushed to 0",
    "binades",
    "specials",
)
_LONGEST_INTEGER = 1e6


def format_lines(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Returns the lines of the table, from what `formats.format_rows` gives."""
    formats = [row for row in rows if row["element"] is None]
    blocks = [row for row in rows if row["element"] is not None]
    return [
        *column_lines(
            _HEAD,
            [_format_cells(row) for row in formats],
            "lrlrrrrrrl",
        ),
        Text(),
        *column_lines(
            ("block format", "bits", "element", "block", "scale"),
            [_block_cells(row) for row in blocks],
            "lrlrl",
        ),
        Text(),
        Text("flushed to 0: magnitudes up to this, rounding to nearest even", style="dim"),
        Text("bits of a block format: of an element with its share of the scale", style="dim"),
    ]


def number_text(value: float | None) -> str:
    """Returns `2^-14`, `448`, `65504`, `3.40282e+38`."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, exponent = math.frexp(value)
    if mantissa == 0.5 and not 1 <= value < _LONGEST_INTEGER:  # noqa: PLR2004  # a power of two
        return f"2^{exponent - 1}"
    return f"{value:.6g}"


def _format_cells(row: Mapping[str, Any]) -> list[Text]:
    specials = [name for name in ("inf", "nan") if row[f"has_{name}"]]
    return [
        Text(row["name"], style="bold"),
        Text(f"{row['bits']:g}"),
        Text(f"{row['exponent_bits']}/{row['mantissa_bits']}"),
        Text(number_text(row["max"])),
        Text(number_text(row["smallest_normal"])),
        Text(_subnormal(row)),
        Text(number_text(row["eps"])),
        Text(number_text(row["flush_threshold"])),
        Text(str(row["binades"])),
        Text(", ".join(specials) or UNKNOWN),
    ]


def _subnormal(row: Mapping[str, Any]) -> str:
    has_none = row["smallest_normal"] in (None, row["smallest_subnormal"])
    return UNKNOWN if has_none else number_text(row["smallest_subnormal"])


def _block_cells(row: Mapping[str, Any]) -> list[Text]:
    scale = row["scale"] + (
        f", and {row['tensor_scale']} per tensor" if row["tensor_scale"] else ""
    )
    return [
        Text(row["name"], style="bold"),
        Text(f"{row['bits']:.4g}"),
        Text(row["element"]),
        Text(row["block"]),
        Text(scale),
    ]
