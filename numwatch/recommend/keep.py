"""Which GEMM modules stay in the training's own precision whatever their numbers say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from numwatch.recommend.thresholds import FIRST_BLOCKS, LAST_BLOCKS, NARROW
from numwatch.snapshot import SlotInfo

_LINEARS = ("Linear", "Float8Linear", "EmulatedLinear")
_STACK = 3
_BLOCK = re.compile(r"^(.*?\.)?(\d+)\.")


def reasons_to_keep(slots: Mapping[str, SlotInfo], modules: Sequence[str]) -> dict[str, str]:
    """Returns of each module that stays for what or where it is, why.

    Args:
        slots: Every slot of the run.
        modules: Paths of its GEMM modules, in the order of data flow.
    """
    reasons = {}
    for module in modules:
        kind = next(info.module_class for info in slots.values() if info.module == module)
        sizes = sizes_of(slots, module)
        if len(sizes) == _STACK and f"{module}:input" not in slots:
            reasons[module] = (
                f"a stack of matrices: {kind} multiplies them itself, so their inputs are not seen"
            )
        elif kind not in _LINEARS:
            reasons[module] = f"not an nn.Linear but {kind}: no library trains it so"
        elif not sizes:
            reasons[module] = "nothing of it was seen"
        elif first_call(slots, module) == math.inf:
            reasons[module] = "never called: only its weight was seen"
        elif min(sizes) < NARROW:
            reasons[module] = f"narrow: {sizes[-1]} features, {sizes[0]} outputs"
    called = [one for one in modules if sizes_of(slots, one) and first_call(slots, one) < math.inf]
    if called:
        reasons.setdefault(called[-1], "last layer: its outputs decide the loss directly")
        if not _embedded_before(slots, called[0]):
            reasons.setdefault(called[0], "first layer: it takes the data as they are")
    return reasons


def ends_to_keep(modules: Sequence[str]) -> dict[str, str]:
    """Returns the modules of the first and last blocks of a network of many, with the reason.

    Blocks are told by the first number in a module's path, `blocks.0.`; 2 of 62 stay at the start
    and 8 of 62 at the end (arXiv:2509.25149), rounded down.
    """
    of_block = {module: found[0] for module in modules if (found := _BLOCK.match(module))}
    blocks = list(dict.fromkeys(of_block.values()))
    first, last = int(len(blocks) * FIRST_BLOCKS), int(len(blocks) * LAST_BLOCKS)
    kept = {*blocks[:first], *blocks[len(blocks) - last :]}
    return {
        module: f"among the first {first} and last {last} of {len(blocks)} blocks"
        for module, block in of_block.items()
        if block in kept
    }


def sizes_of(slots: Mapping[str, SlotInfo], module: str) -> tuple[int, ...]:
    """Returns a Linear's outputs and features, empty where its weight was not seen."""
    info = slots.get(f"{module}:weight")
    return tuple(info.shape) if info is not None and info.shape else ()


def _embedded_before(slots: Mapping[str, SlotInfo], module: str) -> bool:
    """Whether an embedding comes before a module, so that it does not take the data themselves."""
    start = first_call(slots, module)
    return any(
        info.module_class.startswith("Embedding") and first_call(slots, info.module) < start
        for info in slots.values()
    )


def first_call(slots: Mapping[str, SlotInfo], module: str) -> float:
    """Returns a module's place in the order of first calls; inf where not known.

    By what it took and gave: weights are seen before the step.
    """
    orders = [
        info.order
        for role in ("input", "output")
        if (info := slots.get(f"{module}:{role}")) is not None and info.order is not None
    ]
    return min(orders, default=math.inf)
