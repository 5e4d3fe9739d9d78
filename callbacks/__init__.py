"""Lightning's side of numwatch: thin shells over its core, for both Lightning namespaces."""

from typing import TYPE_CHECKING

from numwatch.on_demand import on_demand

if TYPE_CHECKING:
    from .apply import ApplyPlan
    from .emulate import EmulatePrecision
    from .float8 import Float8Training
    from .monitor import NumericsMonitor

__all__ = ["ApplyPlan", "EmulatePrecision", "Float8Training", "NumericsMonitor"]

on_demand(
    __name__,
    {
        f"{__name__}.apply": ("ApplyPlan",),
        f"{__name__}.emulate": ("EmulatePrecision",),
        f"{__name__}.float8": ("Float8Training",),
        f"{__name__}.monitor": ("NumericsMonitor",),
    },
)
