"""A micro-batch under way, as whoever may have to run it once more must know it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numwatch.shadow import ShadowStep

Around = Callable[[], AbstractContextManager[Any]]
"""Makes the surroundings of a forward, such as an autocast."""


@dataclass(frozen=True)
class MicroBatch:
    """What is needed to run a micro-batch once more; dropped when its backward is over.

    Attributes:
        step_of: Makes what runs on a copy of the model.
        batch: The batch, None where it is not known.
        index: Its number.
        epoch: The epoch's number.
        parts: How many micro-batches a step has.
        around: Surroundings of its forward; by default those which the model was seen under.
    """

    step_of: Callable[[], ShadowStep]
    batch: Any = None
    index: int = 0
    epoch: int = 0
    parts: int = 1
    around: Around | None = None
