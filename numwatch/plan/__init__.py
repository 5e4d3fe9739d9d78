"""What to train in: the plan as data, read and written, handed to the libraries that run it."""

from numwatch.plan.types import (
    OPERAND_ROLES,
    TARGETS,
    LossScale,
    ModulePlan,
    Operand,
    Plan,
    Prediction,
    Training,
)

__all__ = [
    "OPERAND_ROLES",
    "TARGETS",
    "LossScale",
    "ModulePlan",
    "Operand",
    "Plan",
    "Prediction",
    "Training",
]
