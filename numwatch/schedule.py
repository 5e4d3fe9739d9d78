"""When numbers are recorded: which steps, and how much of each."""

from dataclasses import dataclass

from numwatch.errors import NumwatchError
from numwatch.taps.gate import Mode

EVERY_N_STEPS = 50
AMAX_EVERY_N_STEPS = 10
BLOCK_EVERY_N_STEPS = 500


@dataclass(frozen=True)
class Schedule:
    """Which steps are recorded.

    Attributes:
        every_n_steps: Full rows at every step divisible by it.
        amax_every_n_steps: Amax and non-finites alone at each other step divisible by it; 0: never.
        shadow_every_n_steps: Full rows, and a shadow step, at every step divisible by it; 0: never.
        block_every_n_steps: Block counts beside full rows, on the first step that has any and then
            on those at least so many steps after the last; 0: never.
    """

    every_n_steps: int = EVERY_N_STEPS
    amax_every_n_steps: int = AMAX_EVERY_N_STEPS
    shadow_every_n_steps: int = 0
    block_every_n_steps: int = BLOCK_EVERY_N_STEPS

    def __post_init__(self) -> None:
        """Refuses what cannot be a cadence.

        Raises:
            NumwatchError: `every_n_steps` is below 1 or one of the others below 0.
        """
        cadences = (
            ("every_n_steps", 1),
            *((f"{name}_every_n_steps", 0) for name in ("amax", "shadow", "block")),
        )
        for name, least in cadences:
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise NumwatchError(f"{name} must be an integer of at least {least}, got {value!r}")

    def mode(self, step: int, previous: int | None = None) -> Mode:
        """Returns what step `step` records: is it, or did it pass since `previous`, a multiple?

        Step numbers may leave some out: each optimizer of a manual optimization counts.
        """
        if _passes(self.every_n_steps, step, previous) or self.shadow(step, previous):
            return Mode.FULL
        return Mode.AMAX if _passes(self.amax_every_n_steps, step, previous) else Mode.OFF

    def shadow(self, step: int, previous: int | None = None) -> bool:
        """Whether step `step` has a shadow step."""
        return _passes(self.shadow_every_n_steps, step, previous)

    def blocks(self, step: int, last: int | None = None) -> bool:
        """Whether step `step` counts blocks if it has full rows; `last` was the last to do so."""
        n = self.block_every_n_steps
        return n > 0 and (last is None or step - last >= n)


def _passes(n: int, step: int, previous: int | None) -> bool:
    before = step - 1 if previous is None else previous
    return n > 0 and step // n > before // n
