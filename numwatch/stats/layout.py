"""The packed row a kernel adds to: where each count and each real of a tensor stands.

A row is int64 [COUNTS] beside float64 [REALS]. Rows add up column by column (amax by maximum, amin
by minimum), so calls, micro-batches and ranks merge in any order.
"""

import numpy as np
import numpy.typing as npt

from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.tensor_stats import TensorStats

BINADES = BINADE_MAX - BINADE_MIN + 1
"""Columns [0, BINADES) count the binades BINADE_MIN ... BINADE_MAX."""
ZEROS, NANS, POSINFS, NEGINFS, POW2S, NUMEL, CALLS = range(BINADES, BINADES + 7)
COUNTS = CALLS + 1
"""Columns of the integer part."""
AMAX, AMIN, SUM, SUMSQ = range(4)
REALS = SUMSQ + 1
"""Columns of the real part."""

COUNT_COLUMNS = {
    "zeros": ZEROS,
    "nans": NANS,
    "posinfs": POSINFS,
    "neginfs": NEGINFS,
    "pow2s": POW2S,
    "numel": NUMEL,
    "calls": CALLS,
}
"""Name of each count but the binades to its column."""
REAL_COLUMNS = {"amax": AMAX, "amin": AMIN, "sum": SUM, "sumsq": SUMSQ}
"""Name of each real to its column."""
AMAX_ONLY = frozenset({"amax", "numel", "calls", "nans", "posinfs", "neginfs"})
"""Names of what `accumulate_amax` fills; an amax-only row has nothing else."""
AMAX_COUNTS = (NANS, POSINFS, NEGINFS, NUMEL, CALLS)
"""Columns of the counts among them."""

Counts = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


def unpack_row(counts: Counts, reals: Reals, dtype: str | None = None) -> TensorStats:
    """Returns what one row [COUNTS] and [REALS] says; of an amax-only row just `AMAX_ONLY`."""
    binades = counts[:BINADES]
    filled = np.flatnonzero(binades)
    first, end = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (-BINADE_MIN, 0)
    return TensorStats(
        numel=int(counts[NUMEL]),
        zeros=int(counts[ZEROS]),
        nans=int(counts[NANS]),
        posinfs=int(counts[POSINFS]),
        neginfs=int(counts[NEGINFS]),
        pow2s=int(counts[POW2S]),
        amax=float(reals[AMAX]),
        amin=float(reals[AMIN]),
        sum=float(reals[SUM]),
        sumsq=float(reals[SUMSQ]),
        binade_first=first + BINADE_MIN,
        binades=tuple(binades[first:end].tolist()),
        dtype=dtype,
    )


def pack_row(stats: TensorStats, calls: int = 1) -> tuple[Counts, Reals]:
    """Returns the row [COUNTS] and [REALS] that `unpack_row` reads; `blocks` has no place there."""
    counts = np.zeros(COUNTS, dtype=np.int64)
    first = stats.binade_first - BINADE_MIN
    counts[first : first + len(stats.binades)] = stats.binades
    counts[ZEROS:COUNTS] = (
        stats.zeros,
        stats.nans,
        stats.posinfs,
        stats.neginfs,
        stats.pow2s,
        stats.numel,
        calls,
    )
    reals = np.array((stats.amax, stats.amin, stats.sum, stats.sumsq), dtype=np.float64)
    return counts, reals
