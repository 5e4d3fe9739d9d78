"""Which loss scales a run's gradients fit, from what was seen of them at any scale.

A loss scale shifts every gradient's histogram: too low, and elements fall below what FP16 can
hold; too high, and the largest overflows. Between the two lies the window.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np

from numwatch.formats import get_format
from numwatch.recipes.gradients import Floats, GradientGroup, Tally, tally
from numwatch.stats import Bounded
from numwatch.stats.tensor_stats import AnyFormat

NEGLIGIBLE = 0.001
"""Share of flushed elements that is taken as none: scaling by 32K "recovers all but 0.1 %" of the
gradients of Micikevicius et al. 2017, which then train as in FP32."""
LOWEST, HIGHEST = -24, 40
"""Exponents looked at: GradScaler's scale goes beyond neither in any run that trains."""
_MARGIN = 2


@dataclass(frozen=True)
class ScaleLine:
    """What a loss scale of 2^exponent would make of the gradients.

    Attributes:
        exponent: log2 of the loss scale.
        flushed: Share of all slots' non-zero elements that become zero.
        worst: The slot with the largest share; None where nothing is flushed.
        worst_flushed: Its share.
        overflows: Slots whose largest element becomes infinite, by name.
    """

    exponent: int
    flushed: Bounded
    worst: str | None
    worst_flushed: Bounded
    overflows: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """The loss scales that neither flush more than a negligible share nor overflow.

    `low` and `high` are found apart from each other: where low > high, or one is None, no single
    loss scale fits all gradients, and the lines say what each costs.

    Attributes:
        format: Canonical name of the gradients' format.
        negligible: Flushed share that is taken as none.
        lines: By rising exponent, about the window and the loss scales seen.
        low: Least exponent with a negligible flushed share; None where there is none up to
            `HIGHEST`, or the gradients' elements were not counted.
        high: Largest exponent at which nothing overflows, at most `HIGHEST`; None where something
            does at `LOWEST` still, or nothing was seen.
    """

    format: str
    negligible: float
    lines: tuple[ScaleLine, ...]
    low: int | None
    high: int | None

    @property
    def empty(self) -> bool:
        """Whether no loss scale fits, or nothing was seen that could tell."""
        return self.low is None or self.high is None or self.low > self.high


class StepsInside(NamedTuple):
    """Steps by where their loss scale lay."""

    below: int
    inside: int
    above: int


def loss_scale_window(
    groups: Iterable[GradientGroup], fmt: AnyFormat = "fp16", negligible: float = NEGLIGIBLE
) -> Window:
    """Returns the window of loss scales in which gradients fit a format.

    Shares are over all elements that would not be zero without rounding. A group counts with its
    number of elements, whatever the scale it was seen at. Groups at a scale of 0, inf or NaN are
    left out.

    Args:
        groups: What was seen of the gradients; several groups may be of the same slot.
        fmt: The format the gradients are in.
        negligible: Flushed share that is taken as none.
    """
    fmt = get_format(fmt)
    exponents = range(LOWEST, HIGHEST + 1)
    scales = [math.ldexp(1.0, exponent) for exponent in exponents]
    slots: dict[str, Tally] = {}
    seen = set()
    for group in groups:
        if group.usable:
            one = tally(group, fmt, scales)
            slots[group.slot] = slots[group.slot] + one if group.slot in slots else one
            seen.add(_exponent(group.loss_scale))
    if not slots:
        return Window(fmt.name, negligible, (), None, None)
    total = reduce(add, slots.values())
    fits = (total.shares[:, 0] <= negligible) & (total.elements[0] > 0)
    low = next((e for e, fit in zip(exponents, fits, strict=True) if fit), None)
    holds = (e for e, over in zip(exponents, total.overflows, strict=True) if not over)
    high = max(holds, default=None)
    shown = {HIGHEST if low is None else low, LOWEST if high is None else high, *seen}
    first, last = max(min(shown) - _MARGIN, LOWEST), min(max(shown) + _MARGIN, HIGHEST)
    lines = _lines(range(first, last + 1), total, slots)
    return Window(fmt.name, negligible, lines, low, high)


def inside(window: Window, scales: Iterable[float]) -> StepsInside:
    """Counts steps by their loss scale.

    Where the window is empty a scale may be too low and too high at once: it counts as above, since
    an overflow costs the whole step. Infinite and NaN scales are above, 0 is below.

    Args:
        window: The window; one made of nothing tells nothing, and all steps count as inside.
        scales: Each step's loss scale.
    """
    steps = [0, 0, 0]
    bottom = math.inf if window.low is None else math.ldexp(1.0, window.low)
    top = 0.0 if window.high is None else math.ldexp(1.0, window.high)
    if not window.lines:
        bottom, top = 0.0, math.inf
    for scale in scales:
        if not scale <= top:
            steps[2] += 1
        elif scale < bottom:
            steps[0] += 1
        else:
            steps[1] += 1
    return StepsInside(*steps)


def _lines(exponents: range, total: Tally, slots: dict[str, Tally]) -> tuple[ScaleLine, ...]:
    names = list(slots)
    by_slot = np.stack([one.shares for one in slots.values()])
    overflows = np.stack([one.overflows for one in slots.values()])
    lines = []
    for exponent in exponents:
        index = exponent - LOWEST
        shares = by_slot[:, index]
        worst = int(shares[:, 0].argmax())
        lines.append(
            ScaleLine(
                exponent=exponent,
                flushed=_bounded(total.shares[index]),
                worst=names[worst] if shares[worst, 0] > 0.0 else None,
                worst_flushed=_bounded(shares[worst]),
                overflows=tuple(names[i] for i in np.flatnonzero(overflows[:, index])),
            )
        )
    return tuple(lines)


def _bounded(share: Floats) -> Bounded:
    value, low, high = (float(one) for one in share)
    return Bounded.within(value, low, high)


def _exponent(scale: float) -> int:
    exponent = math.frexp(scale)[1] - 1
    return min(max(exponent, LOWEST), HIGHEST)
