"""What the processes of a distributed run saw, joined into one snapshot a step."""

from numwatch.ranks.group import PATIENCE_SECONDS
from numwatch.ranks.reducer import Reducer

__all__ = ["PATIENCE_SECONDS", "Reducer"]
