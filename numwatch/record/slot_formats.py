"""Which format a slot's figures are about, and whether its tensors are already in it."""

from functools import cache

from numwatch.formats import BLOCK_FORMATS, Format, UnknownFormatError, get_format
from numwatch.snapshot import SlotInfo

# Below this width a format is only ever met through a scale, unless the tensor is stored in it.
SMALLEST_UNSCALED_BITS = 16


@cache
def known_format(name: str | None) -> Format | None:
    """Returns a format by name; None without a name, for FP64 and for block formats."""
    try:
        return None if name is None else get_format(name)
    except UnknownFormatError:
        return None


def is_block_format(name: str | None) -> bool:
    """Whether a name is that of a block format, whose scales are chosen anew for each block."""
    return name in BLOCK_FORMATS


def judged_format(info: SlotInfo | None) -> Format | None:
    """Returns the format at whose limits a slot's tensors are judged as they are.

    None where it is not known, and where it is so narrow that a scale which is not known stands
    before it.
    """
    fmt = known_format(info.format) if info else None
    if fmt is None or (fmt.bits < SMALLEST_UNSCALED_BITS and not stored_in(info, fmt)):
        return None
    return fmt


def stored_in(info: SlotInfo | None, fmt: Format) -> bool:
    """Whether a slot's tensors are in `fmt` when they are seen, their tails already flushed."""
    return info is not None and info.rounded and known_format(info.format) == fmt
