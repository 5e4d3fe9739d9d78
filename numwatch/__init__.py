"""numwatch: a numerics profiler and diagnostics plugin for PyTorch Lightning."""

from importlib.metadata import version

from numwatch.errors import NumwatchError
from numwatch.formats import get_format, quantize, round_to_block_format, round_to_format
from numwatch.stats import Bounded, TensorStats, tensor_stats

__version__ = version("numwatch")

__all__ = [
    "Bounded",
    "NumwatchError",
    "TensorStats",
    "get_format",
    "quantize",
    "round_to_block_format",
    "round_to_format",
    "tensor_stats",
]
