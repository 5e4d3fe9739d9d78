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
    """One slot under a recipe; n recorded steps, of which m tell shares.

    Figures are over the rows that an amax precedes: before, a rule that looks back has nothing to
    look at and casts at its first scale, whatever the tensor.

    Attributes:
        slot: Its name.
        format: Name of the format it is cast to.
        step: Int64 [n].
        scale: The scale in force, float64 [n]; NaN where parts have scales of their own.
        start: Bool [n], whether no amax precedes the row, under a rule that looks back.
        saturates: Bool [n], whether the largest element is above the format's largest value.
        full: Bool [n], the steps that tell shares: of others only the amax was recorded.
        saturated_shares: Share of the finite non-zero elements above that value, float64 [m, 3] as
            value, low and high.
        flushed_shares: Share that becomes zero, likewise.
        counts: Finite non-zero elements, int64 [m].
        wasted: Bits between the scaled amax and the largest value, float64 [n]; 0 where it
            saturates, NaN where nothing is cast or parts have scales of their own.
        reach: What the scales rest on; None where each follows from the row itself.
    """

    slot: str
    format: str
    step: Ints
    scale: Doubles
    start: Bools
    saturates: Bools
    full: Bools
    saturated_shares: Doubles
    flushed_shares: Doubles
    counts: Ints
    wasted: Doubles
    reach: Reach | None = None

    @property
    def saturated(self) -> Doubles:
        """The saturated shares of all recorded steps, float64 [n, 3]; NaN where none is told."""
        return self._at_steps(self.saturated_shares)

    @property
    def flushed(self) -> Doubles:
        """The flushed shares, likewise."""
        return self._at_steps(self.flushed_shares)

    @property
    def elements(self) -> Ints:
        """Finite non-zero elements of all recorded steps, int64 [n]; 0 where they are not told."""
        elements = np.zeros(len(self.step), np.int64)
        elements[self.full] = self.counts
        return elements

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
        tells = np.isfinite(self.scale) | self.full
        return int((tells & ~self.start).sum())

    @property
    def worst_saturated(self) -> float:
        """Largest share saturated on one step; 0 where no step tells."""
        return _largest(self.saturated_shares[self.counted, 0])

    @property
    def worst_flushed(self) -> float:
        """Largest share flushed on one step; 0 where no step tells."""
        return _largest(self.flushed_shares[self.counted, 0])

    @property
    def median_wasted(self) -> float:
        """Median of the bits wasted; NaN where no step tells."""
        known = self.wasted[np.isfinite(self.wasted) & ~self.start]
        return float(np.median(known)) if len(known) else math.nan

    @property
    def pooled_saturated(self) -> Bounded | None:
        """Share saturated of all elements of all full rows; None where there is none."""
        return pooled_saturated([self])

    @property
    def pooled_flushed(self) -> Bounded | None:
        """Share flushed, likewise."""
        return pooled_flushed([self])

    @property
    def counted(self) -> Bools:
        """The full rows that figures are over, bool [m]."""
        counted: Bools = ~self.start[self.full]
        return counted

    def _at_steps(self, shares: Doubles) -> Doubles:
        at_steps = np.full((len(self.step), 3), np.nan)
        at_steps[self.full] = shares
        return at_steps


def pooled_saturated(slots: Sequence[SlotReplay]) -> Bounded | None:
    """Returns the share saturated of all elements of all slots' rows; None where there is none."""
    return _pooled([(one.saturated_shares, one.counts * one.counted) for one in slots])


def pooled_flushed(slots: Sequence[SlotReplay]) -> Bounded | None:
    """Returns the share flushed, likewise."""
    return _pooled([(one.flushed_shares, one.counts * one.counted) for one in slots])


def _pooled(rows: Sequence[tuple[Doubles, Ints]]) -> Bounded | None:
    """The mean of shares [m, 3] by their counts [m]."""
    total = sum(int(counts.sum()) for _, counts in rows)
    if not total:
        return None
    weighted = sum(((shares * counts[:, None]).sum(axis=0) for shares, counts in rows), np.zeros(3))
    value, low, high = (weighted / total).tolist()
    return Bounded.within(value, low, max(low, high))


def _largest(values: Doubles) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else 0.0
