"""Finding a format by the spelling a person, a paper or a library uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numwatch.errors import NumwatchError, near
from numwatch.formats.blocks import BLOCK_FORMATS, BlockFormat
from numwatch.formats.table import FORMATS
from numwatch.formats.types import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class UnknownFormatError(NumwatchError, ValueError):
    """A name that no format bears."""


def get_format(name: str | torch.dtype | Format) -> Format:
    """Returns the format called `name`.

    Example:
        >>> from numwatch import get_format
        >>> get_format("float8_e4m3fn").max, get_format("e5m2").max
        (448.0, 57344.0)

    Args:
        name: A canonical name, an alias (`float16`, `half`, `float8_e4m3fn`, `torch.bfloat16`) or a
            torch dtype. Case, `-`, `_` and blanks do not matter. A `Format` is passed through.

    Raises:
        UnknownFormatError: No format bears that name; says which exist and which are near.
    """
    if isinstance(name, Format):
        return name
    spelling = str(name)
    found = _BY_SPELLING.get(_normalized(spelling))
    if found is None:
        if _normalized(spelling) in _BLOCK_BY_SPELLING:
            raise UnknownFormatError(
                f"{spelling!r} is a block format; here an element format is needed: "
                f"{', '.join(FORMATS)}"
            )
        raise UnknownFormatError(_unknown("format", spelling, FORMATS))
    return found


def get_block_format(name: str | BlockFormat) -> BlockFormat:
    """Returns the block format called `name`; spellings as in `get_format`.

    Raises:
        UnknownFormatError: No block format bears that name; says which exist and which are near.
    """
    if isinstance(name, BlockFormat):
        return name
    found = _BLOCK_BY_SPELLING.get(_normalized(name))
    if found is None:
        raise UnknownFormatError(_unknown("block format", name, BLOCK_FORMATS))
    return found


def _normalized(spelling: str) -> str:
    lowered = spelling.strip().lower().removeprefix("torch.")
    return lowered.replace("-", "").replace("_", "").replace(" ", "")


def _unknown(kind: str, spelling: str, formats: Mapping[str, Format | BlockFormat]) -> str:
    spellings = [name for fmt in formats.values() for name in (fmt.name, *fmt.aliases)]
    hint = near(spelling.lower().removeprefix("torch."), spellings)
    return f"unknown {kind} {spelling!r}: allowed are {', '.join(formats)}{hint}"


_BY_SPELLING = {
    _normalized(name): fmt for fmt in FORMATS.values() for name in (fmt.name, *fmt.aliases)
}
_BLOCK_BY_SPELLING = {
    _normalized(name): fmt for fmt in BLOCK_FORMATS.values() for name in (fmt.name, *fmt.aliases)
}
