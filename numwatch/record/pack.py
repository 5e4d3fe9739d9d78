"""Snapshots as Arrow tables, column by column."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from numwatch.entries import Entries
from numwatch.record.schema import BLOCKS, STEPS, TABLES, TENSORS
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.stats.binades import BINADE_MIN
from numwatch.stats.layout import AMAX_ONLY, BINADES, COUNT_COLUMNS, REAL_COLUMNS
from numwatch.tensor_rows import Rows, cut_rows

_BATCH = 2_000
"""Rows that are packed together, at most."""


def steps_table(snapshots: Sequence[Snapshot], attempt: int) -> pa.Table:
    """Returns the `steps` rows of snapshots."""
    columns: dict[str, list[object]] = {
        "attempt": [attempt] * len(snapshots),
        "step": [snapshot.step for snapshot in snapshots],
    }
    for field in fields(StepScalars):
        columns[field.name] = [getattr(each.scalars, field.name) for each in snapshots]
    return pa.table(columns, schema=STEPS)


def tensors_table(snapshots: Sequence[Snapshot], attempt: int) -> pa.Table:
    """Returns the `tensors` rows of snapshots that have rows, step by step."""
    parts = [
        (each.step, part) for each in snapshots for part in (each.rows.parts if each.rows else ())
    ]
    tables = [_rows_table(some, attempt) for some in _batches(parts)]
    return pa.concat_tables(tables) if tables else TENSORS.empty_table()


def _batches(parts: Sequence[tuple[int, Rows]]) -> Iterator[list[tuple[int, Rows]]]:
    """Yields small parts together and large ones in pieces, which takes little memory either way.

    Pieces of large parts stand alone: those are not copied for it.
    """
    some: list[tuple[int, Rows]] = []
    for part in _pieces(parts):
        if sum(len(rows) for _, rows in [*some, part]) > _BATCH and some:
            yield some
            some = []
        some.append(part)
    if some:
        yield some


def _pieces(parts: Sequence[tuple[int, Rows]]) -> Iterator[tuple[int, Rows]]:
    for step, rows in parts:
        for start in range(0, len(rows), _BATCH):
            piece = slice(start, start + _BATCH)
            yield step, rows if len(rows) <= _BATCH else cut_rows(rows, piece)


def _rows_table(parts: Sequence[tuple[int, Rows]], attempt: int) -> pa.Table:
    all_rows = [rows for _, rows in parts]
    lengths = [len(rows) for rows in all_rows]
    one = len(parts) == 1
    counts = all_rows[0].counts if one else np.concatenate([rows.counts for rows in all_rows])
    reals = all_rows[0].reals if one else np.concatenate([rows.reals for rows in all_rows])
    amax_only = np.repeat([not rows.full for rows in all_rows], lengths)
    first, binades = _binades(counts, amax_only)
    measured = {
        **{name: counts[:, at] for name, at in COUNT_COLUMNS.items()},
        **{name: reals[:, at] for name, at in REAL_COLUMNS.items()},
    }
    columns = {
        "attempt": np.full(len(counts), attempt, np.int32),
        "step": np.repeat([step for step, _ in parts], lengths),
        "slot": [slot for rows in all_rows for slot in rows.slots],
        "loss_scale": np.concatenate([rows.loss_scales for rows in all_rows]),
        "binade_first": pa.array(first, mask=amax_only),
        "binades": binades,
        **{
            name: values if name in AMAX_ONLY else pa.array(values, mask=amax_only)
            for name, values in measured.items()
        },
        **_casts(all_rows),
    }
    return pa.table(columns, schema=TENSORS)


def blocks_table(snapshots: Sequence[Snapshot], attempt: int) -> pa.Table:
    """Returns the `blocks` rows of snapshots that have some."""
    seen = [(snapshot.step, row) for snapshot in snapshots for row in snapshot.blocks or ()]
    outer = {
        "attempt": [attempt] * len(seen),
        "step": [step for step, _ in seen],
        "slot": [row.slot for _, row in seen],
        "loss_scale": [row.loss_scale for _, row in seen],
    }
    own = [column for column in BLOCKS.names if column not in outer]
    measured = {column: [getattr(row.histogram, column) for _, row in seen] for column in own}
    return pa.table({**outer, **measured}, schema=BLOCKS)


def entries_table(snapshots: Sequence[Snapshot], attempt: int, name: str) -> pa.Table:
    """Returns the rows of a table whose columns are the attributes of its entries, by step."""
    seen = [
        (snapshot.step, entries) for snapshot in snapshots if (entries := getattr(snapshot, name))
    ]
    schema = TABLES[name]
    columns = {
        field.name: pa.chunked_array([_column(each, field) for _, each in seen], field.type)
        for field in schema
        if field.name not in ("attempt", "step")
    }
    lengths = [len(entries) for _, entries in seen]
    columns["attempt"] = np.full(sum(lengths), attempt, np.int32)
    columns["step"] = np.repeat(np.array([step for step, _ in seen], np.int64), lengths)
    return pa.table({column: columns[column] for column in schema.names}, schema=schema)


def _column(entries: Sequence[Any], field: pa.Field) -> pa.Array:
    if not isinstance(entries, Entries):
        return pa.array([getattr(entry, field.name) for entry in entries], field.type)
    values = entries.column(field.name)
    return pa.array(values, field.type, from_pandas=isinstance(values, np.ndarray))


def _casts(all_rows: Sequence[Rows]) -> dict[str, object]:
    casts = [cast for rows in all_rows for cast in rows.casts]
    columns = [name for name in TENSORS.names if name.startswith("cast_")]
    if not any(casts):
        return {name: pa.nulls(len(casts), TENSORS.field(name).type) for name in columns}
    names = [(column, column.removeprefix("cast_")) for column in columns]
    return {column: [cast and getattr(cast, name) for cast in casts] for column, name in names}


def _binades(
    counts: npt.NDArray[np.int64], amax_only: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int16], pa.ListArray]:
    """Trims the histograms at both ends; returns the first binade and the counts of each row."""
    histograms = counts[:, :BINADES]
    # Older Arrow does not write a list that is missing and yet holds something.
    filled = (histograms != 0) & ~amax_only[:, None]
    first = filled.argmax(axis=1)
    end = np.where(filled.any(axis=1), BINADES - filled[:, ::-1].argmax(axis=1), first)
    column = np.arange(BINADES)
    kept = (column >= first[:, None]) & (column < end[:, None])
    offsets = np.concatenate([[0], np.cumsum(end - first)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, pa.array(histograms[kept]), mask=pa.array(amax_only))
    # As in TensorStats, 0 stands where there is no binade.
    starts = np.where(end > first, first + BINADE_MIN, 0)
    return starts.astype(np.int16), lists
