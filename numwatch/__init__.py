"""numwatch: a numerics profiler and diagnostics plugin for PyTorch Lightning.

It looks at every tensor of a training step once, keeps what it saw in a record that outlives the
run, and works everything else out from that record.
"""

from typing import TYPE_CHECKING

from numwatch.errors import NumwatchError
from numwatch.on_demand import on_demand

if TYPE_CHECKING:
    from numwatch.diagnose import diagnose
    from numwatch.emulate import emulate
    from numwatch.formats import get_format, quantize, round_to_block_format, round_to_format
    from numwatch.loop import watch
    from numwatch.plan import Plan, load_plan
    from numwatch.recommend import recommend
    from numwatch.record import Run, open_run
    from numwatch.record.capsule import Capsule, load_capsule
    from numwatch.stats import Bounded, TensorStats, tensor_stats
    from numwatch.version import __version__

__all__ = [
    "Bounded",
    "Capsule",
    "NumwatchError",
    "Plan",
    "Run",
    "TensorStats",
    "__version__",
    "diagnose",
    "emulate",
    "get_format",
    "load_capsule",
    "load_plan",
    "open_run",
    "quantize",
    "recommend",
    "round_to_block_format",
    "round_to_format",
    "tensor_stats",
    "watch",
]

on_demand(
    __name__,
    {
        "numwatch.diagnose": ("diagnose",),
        "numwatch.emulate": ("emulate",),
        "numwatch.formats": ("get_format",),
        "numwatch.formats.block_rounding": ("round_to_block_format",),
        "numwatch.formats.rounding": ("quantize", "round_to_format"),
        "numwatch.loop": ("watch",),
        "numwatch.plan": ("Plan", "load_plan"),
        "numwatch.recommend": ("recommend",),
        "numwatch.record": ("Run", "open_run"),
        "numwatch.record.capsule": ("Capsule", "load_capsule"),
        "numwatch.stats": ("Bounded", "TensorStats"),
        "numwatch.stats.kernels": ("tensor_stats",),
        "numwatch.version": ("__version__",),
    },
)
