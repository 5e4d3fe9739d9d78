"""On what a summary rests: how many steps' tensors were seen, and which slots were scaled."""

from collections.abc import Iterable, Iterator

import numpy as np
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
            steps, full = table["step"].to_numpy(), table["binades"].is_valid().to_numpy()
            self._steps.update(np.unique(steps).tolist())
            self._full.update(np.unique(steps[full]).tolist())
            slots = pc.dictionary_encode(table["slot"].combine_chunks())
            names, codes = slots.dictionary.to_pylist(), slots.indices.to_numpy()
            nonfinites = sum(table[name].to_numpy() for name in ("nans", "posinfs", "neginfs"))
            for found, rows in (
                (self.scaled_slots, table["loss_scale"].to_numpy() != 1.0),
                (self.finite_slots, table["numel"].to_numpy() > nonfinites),
            ):
                here = np.flatnonzero(np.bincount(codes[rows]))
                found.update(names[code] for code in here.tolist())
            yield table
