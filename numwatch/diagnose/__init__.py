"""What went wrong: rules over a `Run` give findings, ordered into chains of cause and effect."""

from typing import TYPE_CHECKING

from numwatch.diagnose.finding import SEVERITIES, Figure, Finding
from numwatch.on_demand import on_demand

if TYPE_CHECKING:
    from numwatch.diagnose.diagnosis import apply, diagnose
    from numwatch.diagnose.evidence import Evidence

__all__ = ["SEVERITIES", "Evidence", "Figure", "Finding", "apply", "diagnose"]

# Who shows findings needs none of the rules.
on_demand(
    __name__,
    {
        "numwatch.diagnose.diagnosis": ("apply", "diagnose"),
        "numwatch.diagnose.evidence": ("Evidence",),
    },
)
