"""The block counts of a run, by slot and step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record import Run
from numwatch.record.tables import Steps
from numwatch.record.unpack import iter_blocks
from numwatch.stats import BlockHistogram

Blocks = Mapping[tuple[int, str], BlockHistogram]
"""By block size and direction, `last` or `across`."""


def read_blocks(
    run: Run, wanted: Mapping[str, Sequence[int]] | None = None
) -> dict[tuple[str, int], Blocks]:
    """Returns the block counts of each slot and step; empty where the run recorded none.

    Args:
        run: The run.
        wanted: The steps of each slot; all that there are by default.
    """
    found: dict[tuple[str, int], dict[tuple[int, str], BlockHistogram]] = defaultdict(dict)
    keys = None if wanted is None else {(slot, step) for slot in wanted for step in wanted[slot]}
    steps = None if keys is None else np.array(sorted({step for _, step in keys}), np.int64)
    for table in run.batches("blocks", steps=steps):
        for step, row in iter_blocks(_only(table, keys)):
            kind = row.histogram.size, row.histogram.direction
            found[row.slot, step][kind] = row.histogram
    return dict(found)


def block_steps(run: Run) -> dict[str, Steps]:
    """Returns the steps at which each slot's blocks were counted, rising."""
    found = defaultdict(list)
    for table in run.batches("blocks", columns=["slot", "step"]):
        slots = pc.dictionary_encode(table["slot"].combine_chunks())
        codes, steps = slots.indices.to_numpy(), table["step"].to_numpy()
        for code, slot in enumerate(slots.dictionary.to_pylist()):
            found[slot].append(steps[codes == code])
    return {slot: np.unique(np.concatenate(steps)) for slot, steps in found.items()}


def _only(table: pa.Table, keys: set[tuple[str, int]] | None) -> pa.Table:
    if keys is None:
        return table
    rows = zip(table["slot"].to_pylist(), table["step"].to_pylist(), strict=True)
    return table.filter(pa.array([row in keys for row in rows], pa.bool_()))
