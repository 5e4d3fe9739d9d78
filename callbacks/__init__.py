"""Lightning's side of numwatch: thin shells over its core, for both Lightning namespaces."""

from .float8 import Float8Training
from .monitor import NumericsMonitor

__all__ = ["Float8Training", "NumericsMonitor"]
