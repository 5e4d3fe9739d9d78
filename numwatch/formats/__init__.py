"""What a number can be: formats as data, rounding to them, block scaling. Pure functions."""

from typing import TYPE_CHECKING

from numwatch.formats.blocks import BLOCK_FORMATS, BlockFormat
from numwatch.formats.lookup import UnknownFormatError, get_block_format, get_format
from numwatch.formats.modes import Rounding, RoundingError, ScaleRule
from numwatch.formats.rows import format_rows
from numwatch.formats.table import FORMATS
from numwatch.formats.types import Format
from numwatch.on_demand import on_demand

if TYPE_CHECKING:
    from numwatch.formats.block_rounding import mx_scale_exponent, round_to_block_format
    from numwatch.formats.rounding import quantize, round_to_format

__all__ = [
    "BLOCK_FORMATS",
    "FORMATS",
    "BlockFormat",
    "Format",
    "Rounding",
    "RoundingError",
    "ScaleRule",
    "UnknownFormatError",
    "format_rows",
    "get_block_format",
    "get_format",
    "mx_scale_exponent",
    "quantize",
    "round_to_block_format",
    "round_to_format",
]

# What rounds tensors needs torch.
on_demand(
    __name__,
    {
        "numwatch.formats.block_rounding": ("mx_scale_exponent", "round_to_block_format"),
        "numwatch.formats.rounding": ("quantize", "round_to_format"),
    },
)
