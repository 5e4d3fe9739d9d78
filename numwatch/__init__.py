"""numwatch: a numerics profiler and diagnostics plugin for PyTorch Lightning."""

from importlib.metadata import version

from numwatch.errors import NumwatchError
from numwatch.formats import get_format, quantize, round_to_block_format, round_to_format

__version__ = version("numwatch")

__all__ = [
    "NumwatchError",
    "get_format",
    "quantize",
    "round_to_block_format",
    "round_to_format",
]
