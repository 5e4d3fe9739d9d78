"""Whether what several ranks hold under one name is the same on all of them."""

from collections.abc import Mapping

import numpy as np

from numwatch.ranks.table import NOTHING, Table
from numwatch.snapshot import REPLICATED, SlotInfo
from numwatch.stats.layout import AMAX, AMAX_COUNTS, COUNTS
from numwatch.tensor_rows import Rows

_AMAX, _MINUS_AMAX, _MOMENT, _MINUS_MOMENT = range(4)
_WEIGHT = ":weight"


def replicas_table(rows: Rows, infos: Mapping[str, SlotInfo]) -> Table:
    """Packs what tells weights apart that a rank holds whole: exact figures, no sums of floats."""
    names = [(i, slot) for i, slot in enumerate(rows.slots) if slot.endswith(_WEIGHT)]
    held = [(i, slot) for i, slot in names if slot in infos and infos[slot].placement == REPLICATED]
    at = [i for i, _ in held]
    columns = np.arange(COUNTS) if rows.full else np.array(AMAX_COUNTS)
    moment = (rows.counts[at][:, columns] * (columns + 1)).sum(axis=1).astype(np.float64)
    amax = rows.reals[at, AMAX]
    maxima = np.stack([amax, -amax, moment, -moment], axis=1)
    return Table(tuple(slot for _, slot in held), np.empty((len(held), 0)), maxima)


def differing_replicas(joined: Table) -> list[str]:
    """Returns the slots of weights in which ranks differ."""
    figures = joined.maxima
    same = (figures[:, _AMAX] == -figures[:, _MINUS_AMAX]) & (
        figures[:, _MOMENT] == -figures[:, _MINUS_MOMENT]
    )
    unseen = figures[:, _AMAX] == NOTHING
    return [joined.keys[i] for i in np.flatnonzero(~(same | unseen)).tolist()]


def told_apart(slots: list[str]) -> str:
    """Returns what the record does not hold, where ranks differ in some weights."""
    more = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
    return (
        f"other ranks' {slots[0]}{more}: ranks hold different weights under one name, and rank 0's "
        "alone are recorded, with their updates and state"
    )
