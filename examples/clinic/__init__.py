"""The clinic: runs that fail for a known reason, and healthy ones, to try the diagnosis on.

    python benchmarks/clinic.py

Each is a real Trainer with `NumericsMonitor`. What goes wrong is in the model, the data, the
precision or a hyper-parameter; nothing is ever written into the record.
"""

from .case import Case, Setup, run
from .failing_bf16 import FAILING_BF16
from .failing_fp8 import FAILING_FP8
from .failing_fp16 import FAILING_FP16
from .failing_overflow import FAILING_OVERFLOW
from .failing_training import FAILING_TRAINING
from .healthy import HEALTHY

CASES = (
    *FAILING_FP16,
    *FAILING_OVERFLOW,
    *FAILING_BF16,
    *FAILING_FP8,
    *FAILING_TRAINING,
    *HEALTHY,
)

__all__ = ["CASES", "Case", "Setup", "run"]
