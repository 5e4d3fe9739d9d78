"""Which of a model's numbered layers a plan keeps whole, counted from either end."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from numwatch.plan.types import ModulePlan, Plan

_LAYER = re.compile(r"(?P<stack>(?:.*?\.)?)(?P<number>\d+)\.")


@dataclass(frozen=True)
class Layers:
    """What a plan keeps of the layers, and of what lies outside of them.

    Attributes:
        start: Layers from the first one on that are kept whole.
        end: Layers up to the last one that are.
        kept_in_layers: Kept modules in any layer.
        kept_inside: Those of them that lie in no layer kept whole at either end.
        kept_outside: Kept modules that lie in no layer.
        planned_outside: The other modules that lie in none.
    """

    start: int
    end: int
    kept_in_layers: tuple[str, ...]
    kept_inside: tuple[str, ...]
    kept_outside: tuple[str, ...]
    planned_outside: tuple[str, ...]


def layers_of(plan: Plan) -> Layers:
    """Returns what is kept of the longest stack of layers, `NAME.0.` to `NAME.N.`.

    A number without a planned module is a layer too: nothing of it is rounded.
    """
    stacks: dict[str, dict[int, list[ModulePlan]]] = defaultdict(lambda: defaultdict(list))
    for module in plan.modules:
        found = _LAYER.match(module.module)
        if found:
            stacks[found["stack"]][int(found["number"])].append(module)
    layers = max(stacks.values(), key=len, default={})
    rounded = sorted(
        number for number, modules in layers.items() if not all(one.kept for one in modules)
    )
    last = max(layers, default=-1)
    start, end = (rounded[0], last - rounded[-1]) if rounded else (last + 1, 0)
    inside = {one.module for modules in layers.values() for one in modules}
    outside = [one for one in plan.modules if one.module not in inside]
    kept = [
        (number, one.module) for number, modules in layers.items() for one in modules if one.kept
    ]
    return Layers(
        start,
        end,
        kept_in_layers=tuple(name for _, name in kept),
        kept_inside=tuple(name for number, name in kept if start <= number <= last - end),
        kept_outside=tuple(one.module for one in outside if one.kept),
        planned_outside=tuple(one.module for one in outside if not one.kept),
    )
