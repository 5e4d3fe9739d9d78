"""The block counts of a run, by slot and step."""

from collections import defaultdict
from collections.abc import Mapping

from numwatch.record import Run
from numwatch.record.unpack import iter_blocks
from numwatch.stats import BlockHistogram

Blocks = Mapping[tuple[int, str], BlockHistogram]
"""By block size and direction, `last` or `across`."""


def read_blocks(run: Run) -> dict[tuple[str, int], Blocks]:
    """Returns the block counts of each slot and step; empty where the run recorded none."""
    found: dict[tuple[str, int], dict[tuple[int, str], BlockHistogram]] = defaultdict(dict)
    for table in run.batches("blocks"):
        for step, row in iter_blocks(table):
            kind = row.histogram.size, row.histogram.direction
            found[row.slot, step][kind] = row.histogram
    return dict(found)
