"""What a user chooses of a run's watching, the same for Lightning and plain loops."""

from collections.abc import Sequence
from dataclasses import dataclass

from numwatch.errors import NumwatchError
from numwatch.schedule import AMAX_EVERY_N_STEPS, BLOCK_EVERY_N_STEPS, EVERY_N_STEPS, Schedule
from numwatch.taps.sampling import SAMPLES

CAPSULE_GB = 2.0
"""Size of a capsule at most, in 10^9 bytes, where nobody chooses."""
STOPS = (None, "critical")
"""What `stop_on` may be."""


@dataclass(frozen=True)
class Settings:
    """What a user chooses.

    Attributes:
        every_n_steps: Full rows every so many steps.
        amax_every_n_steps: Amax and non-finites alone every so many steps; 0 for never.
        include: Globs of modules (`blocks.*`) or slots (`blocks.*:grad_output`) that replace the
            default choice.
        exclude: Globs taken away from it.
        strict: Raise numwatch's own errors instead of ending the watching with a warning.
        update_samples: Elements of each parameter whose updates and optimizer state are measured;
            None for all, 0 for none.
        shadow_every_n_steps: Run the batch once more in FP32 every so many steps; 0 for never.
        origin: Run a failed step once more to name the operation that made it fail.
        capsule_gb: Size of the capsule of a failed step at most, in 10^9 bytes; 0 for none.
        audit: Note the operations of the first step with full rows.
        stop_on: "critical" to ask the run to end at a critical finding; None for never.
        block_every_n_steps: Block counts of GEMM operands on full steps at least so many steps
            apart; 0 for never.
    """

    every_n_steps: int = EVERY_N_STEPS
    amax_every_n_steps: int = AMAX_EVERY_N_STEPS
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    strict: bool = False
    update_samples: int | None = SAMPLES
    shadow_every_n_steps: int = 0
    origin: bool = True
    capsule_gb: float = CAPSULE_GB
    audit: bool = True
    stop_on: str | None = None
    block_every_n_steps: int = BLOCK_EVERY_N_STEPS

    def __post_init__(self) -> None:
        """Refuses a cadence or a sample that is none, before any step (`NumwatchError`)."""
        _ = self.schedule
        samples = self.update_samples
        if samples is not None and (not isinstance(samples, int) or samples < 0):
            raise NumwatchError(
                "update_samples must be an integer of at least 0, or None for all elements; "
                f"got {samples!r}"
            )
        size = self.capsule_gb
        if not isinstance(size, (int, float)) or not size >= 0:
            raise NumwatchError(
                f"capsule_gb must be a number of at least 0, which keeps none; got {size!r}"
            )
        if self.stop_on not in STOPS:
            raise NumwatchError(f'stop_on is None or "critical"; got {self.stop_on!r}')

    @property
    def schedule(self) -> Schedule:
        """The cadence."""
        return Schedule(
            self.every_n_steps,
            self.amax_every_n_steps,
            self.shadow_every_n_steps,
            self.block_every_n_steps,
        )
