"""Which loss scales a run's gradients fit, and where the steps really ran."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress

from numwatch.recipes import GradientGroup, ScaleLine, Window, inside, loss_scale_window


@dataclass(frozen=True)
class ScaleWindow:
    """The window and the steps of a run.

    Attributes:
        window: See `numwatch.recipes.Window`.
        below: Steps whose loss scale was below it.
        inside: Steps inside.
        above: Steps above.
        applies: Whether gradients are in FP16 at all; else it is what FP16 would need.
        steps: Steps at each of the window's lines, from 2^exponent up to the next one.
        skipped_inside: Steps inside that were skipped all the same.
    """

    window: Window
    below: int
    inside: int
    above: int
    applies: bool
    steps: tuple[int, ...]
    skipped_inside: int = 0

    def line(self, exponent: int | None) -> ScaleLine | None:
        """Returns the line of an exponent, None where there is none."""
        return next((line for line in self.window.lines if line.exponent == exponent), None)


def scale_window(
    groups: Iterable[GradientGroup], scales: Iterable[float], skipped: Iterable[bool] = ()
) -> ScaleWindow | None:
    """Returns the window of FP16; None where no gradient was seen in full.

    Args:
        groups: What was seen of the gradients.
        scales: The loss scale of each step.
        skipped: Whether it was skipped.
    """
    groups = list(groups)
    if not any(group.stats.binades or group.stats.zeros for group in groups):
        return None
    window = loss_scale_window(groups, "fp16")
    if not window.lines:
        return None
    scales = list(scales)
    counts = Counter(math.frexp(scale)[1] - 1 for scale in scales if 0 < scale < math.inf)
    return ScaleWindow(
        window,
        *inside(window, scales),
        applies=any(group.rounded for group in groups),
        steps=tuple(counts[line.exponent] for line in window.lines),
        skipped_inside=inside(window, compress(scales, skipped)).inside,
    )
