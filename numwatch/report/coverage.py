"""On what a summary rests: how many steps' tensors were seen, and which slots were scaled."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc


class Coverage:
    """Reads along while the pieces of a `tensors` table pass by.

    Attributes:
        full_steps: Steps with full rows, once all pieces have passed.
        amax_steps: Steps with amax-only rows and no others.
        scaled_slots: Slots with a row whose loss scale is not 1.
        finite_slots: Slots with a finite element.
    """

    def __init__(self) -> None:
        self.scaled_slots: set[str] = set()
        self.finite_slots: set[str] = set()
        self._steps: set[int] = set()
        self._full: set[int] = set()

    @property
    def full_steps(self) -> int:  # noqa: D102  # see the class
        return len(self._full)

    @property
    def amax_steps(self) -> int:  # noqa: D102  # see the class
        return len(self._steps - self._full)

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yields the pieces as they are."""
        for table in tables:
            self._steps.update(pc.unique(table["step"]).to_pylist())
            full = table.filter(pc.field("binades").is_valid())
            self._full.update(pc.unique(full["step"]).to_pylist())
            scaled = table.filter(pc.field("loss_scale") != 1.0)
            self.scaled_slots.update(pc.unique(scaled["slot"]).to_pylist())
            nonfinites = pc.field("nans") + pc.field("posinfs") + pc.field("neginfs")
            finite = table.filter(pc.field("numel") > nonfinites)
            self.finite_slots.update(pc.unique(finite["slot"]).to_pylist())
            yield table
