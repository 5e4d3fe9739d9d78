"""Tensor rows over ranks: their counts add up, and it is kept whose numbers stood out."""

from collections.abc import Mapping

import numpy as np

from numwatch.rank_rows import RankRow
from numwatch.ranks.table import Array, Table, known, largest
from numwatch.snapshot import SlotInfo
from numwatch.stats.layout import (
    AMAX,
    AMAX_COUNTS,
    AMIN,
    COUNTS,
    NANS,
    NEGINFS,
    POSINFS,
    REALS,
    SUM,
    SUMSQ,
)
from numwatch.tensor_rows import Cast, Rows

_MAX_RANKS = 1 << 20
_SEEN, _NONFINITE, _SUM, _SUMSQ, _CASTS, _FLUSHED, _SATURATED = range(7)
_MORE = _SATURATED + 1
"""Columns of the sums; the row's counts come after them."""
_AMAX, _MINUS_AMIN, _LOSS_SCALE, _CAST_SCALE, _WORST, _FIRST = range(6)
_MAXIMA = _FIRST + 1


def tensors_table(rows: Rows, rank: int, size: int) -> Table:
    """Packs the rows one rank saw."""
    n, columns = len(rows), _columns(full=rows.full)
    nonfinite = rows.counts[:, [NANS, POSINFS, NEGINFS]].sum(axis=1) > 0
    sums = np.zeros((n, _MORE + len(columns)))
    sums[:, _SEEN] = 1
    sums[:, _NONFINITE] = nonfinite
    sums[:, [_SUM, _SUMSQ]] = rows.reals[:, [SUM, SUMSQ]]
    sums[:, _MORE:] = rows.counts[:, columns]
    maxima = np.empty((n, _MAXIMA))
    maxima[:, _AMAX] = rows.reals[:, AMAX]
    maxima[:, _MINUS_AMIN] = -rows.reals[:, AMIN]
    maxima[:, _LOSS_SCALE] = rows.loss_scales
    maxima[:, _CAST_SCALE] = -np.inf
    maxima[:, _WORST] = _ranked(rows.reals[:, AMAX], rank)
    maxima[:, _FIRST] = np.where(nonfinite, size - rank, 0)
    for i, cast in enumerate(rows.casts):
        if cast is not None:
            sums[i, [_CASTS, _FLUSHED, _SATURATED]] = 1, cast.flushed, cast.saturated
            maxima[i, _CAST_SCALE] = largest(cast.scale)
    return Table(rows.slots, sums, maxima)


def joined_rows(
    joined: Table, size: int, infos: Mapping[str, SlotInfo], *, full: bool
) -> tuple[Rows, tuple[RankRow, ...]]:
    """Returns the rows of all ranks, and for each which of them stood out.

    Args:
        joined: The table once it is reduced; keys nobody saw in this step are left out.
        size: How many ranks there are.
        infos: What is known of the slots.
        full: Whether the rows are.
    """
    seen = np.flatnonzero(joined.sums[:, _SEEN])
    names = tuple(joined.keys[i] for i in seen.tolist())
    sums, maxima = joined.sums[seen], joined.maxima[seen]
    counts = np.zeros((len(seen), COUNTS), dtype=np.int64)
    counts[:, _columns(full=full)] = sums[:, _MORE:].astype(np.int64)
    reals = np.empty((len(seen), REALS))
    reals[:, AMAX], reals[:, AMIN] = maxima[:, _AMAX], -maxima[:, _MINUS_AMIN]
    reals[:, [SUM, SUMSQ]] = sums[:, [_SUM, _SUMSQ]]
    casts = tuple(
        _cast(infos.get(name), *lines) for name, *lines in zip(names, sums, maxima, strict=True)
    )
    rows = Rows(names, counts, reals, maxima[:, _LOSS_SCALE].copy(), casts, full)
    return rows, tuple(
        RankRow(
            slot=name,
            amax_rank=_rank_of(line[_WORST]),
            nonfinite_ranks=int(more[_NONFINITE]),
            nonfinite_rank=int(size - line[_FIRST]) if line[_FIRST] > 0 else None,
        )
        for name, more, line in zip(names, sums, maxima, strict=True)
    )


def _columns(*, full: bool) -> list[int]:
    return list(range(COUNTS)) if full else list(AMAX_COUNTS)


def _ranked(amax: Array, rank: int) -> Array:
    """Orders ranks by amax, the first of equals ahead: FP32's bits above, the rank below."""
    with np.errstate(over="ignore"):
        bits = amax.astype(np.float32).view(np.int32).astype(np.int64)
    ordered: Array = (bits * _MAX_RANKS + (_MAX_RANKS - 1 - rank)).astype(np.float64)
    return ordered


def _rank_of(ordered: float) -> int:
    return _MAX_RANKS - 1 - int(ordered) % _MAX_RANKS


def _cast(info: SlotInfo | None, sums: Array, maxima: Array) -> Cast | None:
    if not sums[_CASTS] or info is None or info.format is None:
        return None
    scale = known(maxima[_CAST_SCALE])
    return Cast(
        info.format,
        scale=float("nan") if scale is None else scale,
        flushed=int(sums[_FLUSHED]),
        saturated=int(sums[_SATURATED]),
    )
