"""Rows of the `tensors` and `blocks` tables as the types they were made from."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from numwatch.block_rows import BlockRow
from numwatch.stats import BlockHistogram, TensorStats
from numwatch.tensor_rows import Cast, Row


def iter_rows(table: pa.Table) -> Iterator[tuple[int, Row]]:
    """Yields the step and the `Row` of each row of a `tensors` table."""
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield (
                row["step"],
                Row(row["slot"], row_stats(row), row["loss_scale"], row_cast(row)),
            )


def row_stats(row: Mapping[str, Any]) -> TensorStats:
    """Returns the statistics a row of the `tensors` table holds, given as a mapping.

    What an amax-only row has not measured reads as in an empty tensor: no zeros, no binades, amin
    inf.
    """
    return TensorStats(
        numel=row["numel"],
        zeros=row["zeros"] or 0,
        nans=row["nans"],
        posinfs=row["posinfs"],
        neginfs=row["neginfs"],
        pow2s=row["pow2s"] or 0,
        amax=row["amax"],
        amin=math.inf if row["amin"] is None else row["amin"],
        sum=row["sum"] or 0.0,
        sumsq=row["sumsq"] or 0.0,
        binade_first=row["binade_first"] or 0,
        binades=tuple(row["binades"] or ()),
    )


def row_cast(row: Mapping[str, Any]) -> Cast | None:
    """Returns the cast a row of the `tensors` table holds, or None."""
    if row["cast_format"] is None:
        return None
    return Cast(row["cast_format"], row["cast_scale"], row["cast_flushed"], row["cast_saturated"])


def iter_blocks(table: pa.Table) -> Iterator[tuple[int, BlockRow]]:
    """Yields the step and the `BlockRow` of each row of a `blocks` table."""
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            yield row["step"], BlockRow(row["slot"], row["loss_scale"], row_blocks(row))


def row_blocks(row: Mapping[str, Any]) -> BlockHistogram:
    """Returns the histogram a row of the `blocks` table holds, given as a mapping."""
    return BlockHistogram(
        size=row["size"],
        direction=row["direction"],
        blocks=row["blocks"],
        zero_blocks=row["zero_blocks"],
        below=tuple(map(tuple, row["below"])),
        tops=tuple(map(tuple, row["tops"])),
        amax_first=row["amax_first"],
        amaxes=tuple(row["amaxes"]),
        peaks=tuple(row["peaks"]),
        elements=tuple(map(tuple, row["elements"])),
        near=row["near"],
        edge=row["edge"],
        deep=row["deep"],
    )
