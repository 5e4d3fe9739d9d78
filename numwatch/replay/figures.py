"""What a recipe would have done to one slot, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numwatch.replay.columns import Bools, Doubles, Ints
from numwatch.stats import Bounded


@dataclass(frozen=True)
class Reach:
    """What the scales of a rule that looks back rest on, summed over the rows it answers for.

    Attributes:
        seen: Amaxes in the histories that were recorded.
        held: Amaxes in the histories, recorded or not.
        blind: Rows of whose history none was recorded: the last one seen stands for it.
        merged: Whether rows hold several casts, as with accumulated micro-batches: the rule would
            have moved once a cast, and is replayed once a row.
    """

    seen: int
    held: int
    blind: int
    merged: bool

    @property
    def whole(self) -> bool:
        """Whether nothing that the scales rest on is missing."""
        return self.seen == self.held and not self.merged


@dataclass(frozen=True, eq=False)
class SlotReplay:
    """One slot under a recipe; all arrays have an entry a recorded step.

    Figures are over the rows that an amax precedes: before, a rule that looks back has nothing to
    look at and casts at its first scale, whatever the tensor.

    Attributes:
        slot: Its name.
        format: Name of the format it is cast to.
        step: Int64 [n].
        scale: The scale in force, float64 [n]; NaN where parts have scales of their own.
        start: Bool [n], whether no amax precedes the row, under a rule that looks back.
        saturates: Bool [n], whether the largest element is above the format's largest value.
        saturated: Share of the finite non-zero elements above it, float64 [n, 3] as value, low and
            high; NaN on steps of which only the amax was recorded.
        flushed: Share that becomes zero, likewise.
        wasted: Bits between the scaled amax and the largest value, float64 [n]; 0 where it
            saturates, NaN where nothing is cast or parts have scales of their own.
        elements: Finite non-zero elements, int64 [n]; 0 where only the amax was recorded.
        reach: What the scales rest on; None where each follows from the row itself.
    """

    slot: str
    format: str
    step: Ints
    scale: Doubles
    start: Bools
    saturates: Bools
    saturated: Doubles
    flushed: Doubles
    wasted: Doubles
    elements: Ints
    reach: Reach | None = None

    @property
    def certain(self) -> bool:
        """Whether the scale in force is known at each step: no step it rests on is unseen."""
        return self.reach is None or self.reach.whole

    @property
    def steps_saturating(self) -> int:
        """Recorded steps on which its largest element saturates."""
        return int((self.saturates & ~self.start).sum())

    @property
    def steps_known(self) -> int:
        """Recorded steps that tell whether it saturates."""
        tells = np.isfinite(self.scale) | np.isfinite(self.saturated[:, 0])
        return int((tells & ~self.start).sum())

    @property
    def worst_saturated(self) -> float:
        """Largest share saturated on one step; 0 where no step tells."""
        return _largest(self.saturated[~self.start, 0])

    @property
    def worst_flushed(self) -> float:
        """Largest share flushed on one step; 0 where no step tells."""
        return _largest(self.flushed[~self.start, 0])

    @property
    def median_wasted(self) -> float:
        """Median of the bits wasted; NaN where no step tells."""
        known = self.wasted[np.isfinite(self.wasted) & ~self.start]
        return float(np.median(known)) if len(known) else math.nan

    @property
    def pooled_saturated(self) -> Bounded | None:
        """Share saturated of all elements of all full rows; None where there is none."""
        return pooled([self.saturated[~self.start]], [self.elements[~self.start]])

    @property
    def pooled_flushed(self) -> Bounded | None:
        """Share flushed, likewise."""
        return pooled([self.flushed[~self.start]], [self.elements[~self.start]])


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
