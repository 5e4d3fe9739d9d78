"""Which recipe fits which format, and which words a plan may use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from numwatch.errors import NumwatchError, near
from numwatch.formats import (
    BLOCK_FORMATS,
    FORMATS,
    BlockFormat,
    Format,
    UnknownFormatError,
    get_block_format,
    get_format,
)
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling
from numwatch.recipes.spec import Recipe, recipe_text

_ELEMENTS = tuple(
    name
    for name, fmt in FORMATS.items()
    if fmt.signed and fmt.has_zero and name not in BLOCK_FORMATS
)
"""Formats a tensor can be stored in by itself: no scales (E8M0), no elements alone (MXINT8)."""
_BLOCKS_OF: Mapping[type, tuple[str, ...]] = {
    BlockScaling: tuple(name for name in BLOCK_FORMATS if name.startswith("block-fp8-")),
    MXScaling: tuple(name for name, fmt in BLOCK_FORMATS.items() if fmt.is_mx),
    NVFP4Scaling: tuple(name for name, fmt in BLOCK_FORMATS.items() if fmt.tensor_scale),
}


def formats_for(recipe: Recipe) -> tuple[str, ...]:
    """Returns the names of the formats whose scales the recipe can choose."""
    return _BLOCKS_OF.get(type(recipe), _ELEMENTS)


def check_fit(fmt: Format | BlockFormat, recipe: Recipe) -> None:
    """Refuses a recipe that can't choose the format's scales.

    Raises:
        NumwatchError: Says which formats the recipe takes.
    """
    blocks = type(recipe) in _BLOCKS_OF
    if isinstance(fmt, BlockFormat) is not blocks or fmt.name not in formats_for(recipe):
        raise NumwatchError(
            f"recipe {recipe_text(recipe)!r} takes {', '.join(formats_for(recipe))}; "
            f"got {fmt.name!r}"
        )


def format_for(name: str, recipe: Recipe) -> Format | BlockFormat:
    """Returns the format called `name` that the recipe takes; `mxint8` is both kinds' name.

    Raises:
        NumwatchError: No format bears that name, or the recipe does not take it.
    """
    fmt: Format | BlockFormat
    try:
        fmt = get_block_format(name) if type(recipe) in _BLOCKS_OF else get_format(name)
    except UnknownFormatError:
        fmt = _any_format(name)
    check_fit(fmt, recipe)
    return fmt


def _any_format(name: str) -> Format | BlockFormat:
    with suppress(UnknownFormatError):
        return get_format(name)
    with suppress(UnknownFormatError):
        return get_block_format(name)
    known: list[Format | BlockFormat] = [*FORMATS.values(), *BLOCK_FORMATS.values()]
    spellings = [spelling for fmt in known for spelling in (fmt.name, *fmt.aliases)]
    allowed = ", ".join((*_ELEMENTS, *BLOCK_FORMATS))
    raise UnknownFormatError(
        f"unknown format {name!r}: allowed are {allowed}{near(name.lower(), spellings)}"
    )


def check_word(what: str, word: object, allowed: Collection[str]) -> None:
    """Refuses a word that is not one of those allowed.

    Raises:
        NumwatchError: Says which are, and which are near.
    """
    if word not in allowed:
        hint = near(word, allowed) if isinstance(word, str) else ""
        raise NumwatchError(f"{what} is one of {', '.join(allowed)}; got {word!r}{hint}")
