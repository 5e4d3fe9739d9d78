"""How much the suite tries: with `NUMWATCH_THOROUGH=1` in the environment, all there is to try."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
THOROUGH = os.environ.get("NUMWATCH_THOROUGH") == "1"


def every(n: int, items: Sequence[T]) -> Sequence[T]:
    """Returns each n-th of the items, or all where the suite is to be thorough."""
    return items if THOROUGH else items[::n]


def at_most(n: int, thorough: int) -> int:
    """Returns how many examples to try."""
    return thorough if THOROUGH else n
