"""Whose numbers stood out where several processes trained together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RankRow:
    """Which ranks a slot's joined row owes its extremes to.

    Attributes:
        slot: Name of the slot.
        amax_rank: The rank with the largest amax, the first of equals (to FP32's precision).
        nonfinite_ranks: How many ranks held NaN or inf.
        nonfinite_rank: The first of them, None where there is none.
    """

    slot: str
    amax_rank: int
    nonfinite_ranks: int
    nonfinite_rank: int | None
