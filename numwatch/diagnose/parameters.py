"""Where a parameter stands in a step's data flow, and findings about several parameters."""

from collections.abc import Iterable

from numwatch.diagnose.evidence import Evidence
from numwatch.snapshot import ROLES, path_of

MAX_OTHERS = 20
"""Slots named beside the first."""


def parameter_order(evidence: Evidence, slot: str) -> float | None:
    """Returns the order of a parameter's slot: its own, or its module's; None where not known."""
    own = evidence.order(slot)
    if own is not None:
        return own
    module = path_of(slot).rpartition(".")[0]
    orders = (evidence.order(f"{module}:{role}") for role in ROLES)
    return min((order for order in orders if order is not None), default=None)


def first_and_others(
    evidence: Evidence, held: Iterable[tuple[str, int]]
) -> tuple[str, int, tuple[str, ...]]:
    """Returns the first slot by step and data flow, its step, and the names of the others.

    Args:
        evidence: Tells the data flow.
        held: Slots, each with the first step at which something holds of it; at least one.
    """

    def key(entry: tuple[str, int]) -> tuple[int, bool, float, str]:
        slot, step = entry
        order = parameter_order(evidence, slot)
        return step, order is None, order or 0.0, slot

    (slot, step), *others = sorted(held, key=key)
    return slot, step, tuple(name for name, _ in others)[:MAX_OTHERS]
