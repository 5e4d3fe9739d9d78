"""Which failed steps of a run are worth a search for their origin."""

from numwatch.recipes.collapse import SEARCH_ABOVE, SKIPS

MAX_SEARCHES = 3
"""In a run: each takes a few steps' time."""
COLLAPSED = SEARCH_ABOVE * 0.5 ** (SKIPS - 1)
"""Loss scale at the last of `SKIPS` skips from `SEARCH_ABOVE` on, with GradScaler's backoff."""


class Occasions:
    """Which failures are worth a search: at most `MAX_SEARCHES`, each for something new.

    New is the first failure, the first whose loss or unscaled gradients are not finite, and `SKIPS`
    skips in a row.

    Attributes:
        in_a_row: Skips since the last step that was none.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._searches = 0
        self._nonfinite = False
        self._row_searched = False

    @property
    def long_row(self) -> bool:
        """Whether so many steps were skipped in a row that it hardly is a search for a scale."""
        return self.in_a_row >= SKIPS

    def skip(self) -> None:
        """A step was skipped."""
        self.in_a_row += 1

    def step(self) -> None:
        """A step was taken."""
        self.in_a_row = 0

    def due(self, *, nonfinite: bool) -> bool:
        """Whether the failure under way is to be searched; if so it counts."""
        first = self._searches == 0
        new = nonfinite and not self._nonfinite
        row = self.long_row and not self._row_searched
        if self._searches >= MAX_SEARCHES or not (first or new or row):
            return False
        self._searches += 1
        self._nonfinite |= nonfinite
        self._row_searched |= row
        return True

    def late(self) -> bool:
        """Whether a failure that was learnt of too late is the first of its kind."""
        return self.due(nonfinite=True)
