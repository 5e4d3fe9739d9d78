"""Lightning's side of numwatch: thin shells over its core, for both Lightning namespaces."""

from .apply import ApplyPlan
from .emulate import EmulatePrecision
from .float8 import Float8Training
from .monitor import NumericsMonitor

__all__ = ["ApplyPlan", "EmulatePrecision", "Float8Training", "NumericsMonitor"]
