"""Telling early that a loss scale falls for good, on its way to 0.0."""

from dataclasses import dataclass

from numwatch.recipes.loss_scaling import skips_to_zero

SKIPS = 10
"""Skips in a row that tell a collapse: from 65536 down to 64. A healthy run skips a handful at its
start, where the initial scale is too high on purpose, and one at a time later on."""
SEARCH_ABOVE = 65536.0
"""Skips at a higher scale don't count: who starts at 2^32 means to skip until the scale fits."""
FLOOR = 1.0
"""A scale that backs off below this makes gradients smaller, the opposite of its purpose."""
RECOVERED = 4.0
"""Scale at which the alarm is set again: above what a scale swinging about `FLOOR` reaches."""


@dataclass(frozen=True)
class Collapse:
    """A loss scale that falls for good.

    Attributes:
        step: The step at which this was clear.
        scale: The loss scale after it.
        skipped_in_a_row: Skipped steps up to and with this one.
        zero_at_step: The step after which the scale will be exactly 0.0 if every step is skipped
            and takes it down by the factor seen last; None where that never ends at 0.0.
    """

    step: int
    scale: float
    skipped_in_a_row: int
    zero_at_step: int | None


class CollapseAlarm:
    """Watches the loss scale of a run and announces a collapse once.

    It does so after `SKIPS` skipped steps in a row over which the scale fell, or when a skip takes
    the scale below `FLOOR`. It is set again by a step that was not skipped at a scale of
    `RECOVERED` or more.
    """

    def __init__(self) -> None:
        self._armed = True
        self._skipped = 0
        self._counted = 0
        self._highest = 0.0
        self._backoff = 1.0

    def see(self, step: int, before: float, after: float, skipped: bool) -> Collapse | None:
        """Takes one step and returns the collapse that it made clear, if it did.

        Args:
            step: Its number.
            before: Loss scale in force during the step.
            after: Loss scale after the scaler's update.
            skipped: Whether the optimizer left the weights alone.
        """
        if not skipped:
            self._skipped = self._counted = 0
            self._armed = self._armed or after >= RECOVERED
            return None
        self._skipped += 1
        if before <= SEARCH_ABOVE:
            self._highest = max(self._highest, before) if self._counted else before
            self._counted += 1
        if after < before:
            self._backoff = after / before
        if not (self._armed and self._collapses(before, after)):
            return None
        self._armed = False
        left = skips_to_zero(after, self._backoff)
        return Collapse(step, after, self._skipped, None if left is None else step + left)

    def _collapses(self, before: float, after: float) -> bool:
        falls_in_a_row = self._counted >= SKIPS and after < self._highest
        return falls_in_a_row or after < min(before, FLOOR) or after == 0.0
