"""What to train in: the plan as data, read and written, handed to the libraries that run it."""

from numwatch.plan.modules import check_modules
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
from numwatch.plan.yaml_file import load_plan
from numwatch.plan.yaml_reading import parse_plan
from numwatch.plan.yaml_text import plan_text

__all__ = [
    "OPERAND_ROLES",
    "TARGETS",
    "LossScale",
    "ModulePlan",
    "Operand",
    "Plan",
    "Prediction",
    "Training",
    "check_modules",
    "load_plan",
    "parse_plan",
    "plan_text",
]
