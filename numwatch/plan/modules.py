"""Whether a plan is for a model: the modules that it names are there."""

from collections.abc import Iterable

from numwatch.errors import NumwatchError, near
from numwatch.plan.types import Plan

_SHOWN = 3
"""Missing modules named one by one; the others are counted."""


def check_modules(plan: Plan, names: Iterable[str]) -> None:
    """Refuses a plan for another model.

    Args:
        plan: The plan.
        names: What the model has: the names of its `named_modules()`.

    Raises:
        NumwatchError: The plan names modules that the model lacks; says which are near.
    """
    known = set(names)
    missing = [module.module for module in plan.modules if module.module not in known]
    if not missing:
        return
    shown = ", ".join(f"{name!r}{near(name, known)}" for name in missing[:_SHOWN])
    more = len(missing) - _SHOWN
    raise NumwatchError(
        f"the plan names {len(missing)} of {len(plan.modules)} modules that the model lacks: "
        f"{shown}{f', and {more} more' if more > 0 else ''}"
    )
