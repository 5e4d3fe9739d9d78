"""numwatch: a numerics profiler and diagnostics plugin for PyTorch Lightning.

It looks at every tensor of a training step once, keeps what it saw in a record that outlives the
run, and works everything else out from that record.
"""

from importlib.metadata import version

from numwatch.diagnose import diagnose
from numwatch.emulate import emulate
from numwatch.errors import NumwatchError
from numwatch.formats import get_format, quantize, round_to_block_format, round_to_format
from numwatch.loop import watch
from numwatch.plan import Plan, load_plan
from numwatch.recommend import recommend
from numwatch.record import Run, open_run
from numwatch.record.capsule import Capsule, load_capsule
from numwatch.stats import Bounded, TensorStats, tensor_stats

__version__ = version("numwatch")

__all__ = [
    "Bounded",
    "Capsule",
    "NumwatchError",
    "Plan",
    "Run",
    "TensorStats",
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
