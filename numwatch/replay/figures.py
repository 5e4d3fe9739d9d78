"""What a recipe would have done to one slot, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numwatch.replay.columns import Bools, Doubles, Ints
from numwatch.stats import Bounded


@dataclass(frozen=True, eq=False)
class SlotReplay:
    """One slot under a recipe; all arrays have an entry a recorded step.

    Attributes:
        slot: Its name.
        format: Name of the format it is cast to.
        step: Int64 [n].
        scale: The scale in force, float64 [n]; NaN where parts have scales of their own.
        saturates: Bool [n], whether the largest element is above the format's largest value.
        saturated: Share of the finite non-zero elements above it, float64 [n, 3] as value, low and
            high; NaN on steps of which only the amax was recorded.
        flushed: Share that becomes zero, likewise.
        wasted: Bits between the scaled amax and the largest value, float64 [n]; 0 where it
            saturates, NaN where nothing is cast or parts have scales of their own.
        elements: Finite non-zero elements, int64 [n]; 0 where only the amax was recorded.
        certain: Whether the scale in force is known at each step: no step it rests on is unseen.
    """

    slot: str
    format: str
    step: Ints
    scale: Doubles
    saturates: Bools
    saturated: Doubles
    flushed: Doubles
    wasted: Doubles
    elements: Ints
    certain: bool

    @property
    def steps_saturating(self) -> int:
        """Recorded steps on which its largest element saturates."""
        return int(self.saturates.sum())

    @property
    def steps_known(self) -> int:
        """Recorded steps that tell whether it saturates."""
        return int((np.isfinite(self.scale) | np.isfinite(self.saturated[:, 0])).sum())

    @property
    def worst_saturated(self) -> float:
        """Largest share saturated on one step; 0 where no step tells."""
        return _largest(self.saturated[:, 0])

    @property
    def worst_flushed(self) -> float:
        """Largest share flushed on one step; 0 where no step tells."""
        return _largest(self.flushed[:, 0])

    @property
    def median_wasted(self) -> float:
        """Median of the bits wasted; NaN where no step tells."""
        known = self.wasted[np.isfinite(self.wasted)]
        return float(np.median(known)) if len(known) else float("nan")

    @property
    def pooled_saturated(self) -> Bounded | None:
        """Share saturated of all elements of all full rows; None where there is none."""
        return pooled([self.saturated], [self.elements])

    @property
    def pooled_flushed(self) -> Bounded | None:
        """Share flushed, likewise."""
        return pooled([self.flushed], [self.elements])


def pooled(shares: Sequence[Doubles], elements: Sequence[Ints]) -> Bounded | None:
    """Returns the share over all elements of rows [n, 3], by their counts [n]."""
    rows = np.concatenate([np.zeros((0, 3)), *shares])
    counts = np.concatenate([np.zeros(0, np.int64), *elements]).astype(np.float64)
    known = np.isfinite(rows[:, 0]) & (counts > 0)
    total = counts[known].sum()
    if not total:
        return None
    value, low, high = ((rows[known] * counts[known, None]).sum(axis=0) / total).tolist()
    return Bounded.within(value, low, max(low, high))


def _largest(values: Doubles) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else 0.0
