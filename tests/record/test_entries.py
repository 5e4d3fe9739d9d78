"""Entries kept by column, and rows kept in parts, read like those that are not."""

import math

import numpy as np
import pytest
from record_builders import small_rows

from numwatch.entries import Entries, join_entries
from numwatch.record.pack import entries_table, tensors_table
from numwatch.record.thinning import bytes_of
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.step_entries import OptimizerState
from numwatch.tensor_rows import Rows, join_rows, pick_rows

PARTS = [
    {
        "slot": ["a:v", "b:v"],
        "dtype": ["float32"] * 2,
        "sampled": [3, 4],
        "eps": [1e-8, None],
        "rms": np.array([1.5, math.nan]),
    },
    {
        "slot": ["c:v"],
        "dtype": ["float16"],
        "sampled": [5],
        "eps": [None],
        "rms": np.array([0.0]),
    },
]
STATES = [
    OptimizerState("a:v", "float32", 3, eps=1e-8, rms=1.5),
    OptimizerState("b:v", "float32", 4),
    OptimizerState("c:v", "float16", 5, rms=0.0),
]


def test_they_read_as_the_objects_they_stand_for():
    entries = join_entries(OptimizerState, PARTS)
    assert len(entries) == 3
    assert list(entries) == STATES
    assert [entries[0], entries[-1]] == [STATES[0], STATES[-1]]
    assert list(entries[1:]) == STATES[1:]
    assert entries.nbytes < bytes_of(Snapshot(0, StepScalars(), states=tuple(STATES)))
    with pytest.raises(IndexError):
        entries[3]
    assert join_entries(OptimizerState, []) == ()


def test_the_record_keeps_the_same_of_both():
    columns = {f: [getattr(s, f) for s in STATES] for f in vars(STATES[0])}
    columns["rms"] = np.array([1.5, math.nan, 0.0])
    kept, objects = (
        entries_table([Snapshot(7, StepScalars(), states=states)], 2, "states")
        for states in (Entries(OptimizerState, columns), tuple(STATES))
    )
    assert kept.equals(objects)
    assert kept["rms"].null_count == 1
    assert kept["step"].to_pylist() == [7] * 3


@pytest.mark.parametrize("seen", [[0, 1, 2], [1, 2, 3, 6, 9], list(range(0, 40, 2)), []])
def test_rows_that_were_picked_and_joined_are_the_rows_they_were(seen):
    rows = small_rows(5, [f"m{i}:input" for i in range(40)])
    picked = pick_rows(rows, np.array(seen, dtype=np.int64))
    joined = join_rows([picked, rows])
    assert joined.slots == (*(rows.slots[i] for i in seen), *rows.slots)
    assert (joined.counts == np.concatenate([rows.counts[seen], rows.counts])).all()
    assert (joined.reals == np.concatenate([rows.reals[seen], rows.reals])).all()
    assert [row.slot for row in joined] == list(joined.slots)
    assert sum(len(part) for part in joined.parts) == len(joined) == len(seen) + 40
    whole = Rows(
        joined.slots, joined.counts, joined.reals, joined.loss_scales, joined.casts, joined.full
    )
    tables = [tensors_table([Snapshot(3, StepScalars(), r)], 0) for r in (joined, whole)]
    assert tables[0].equals(tables[1])


def test_rows_in_one_piece_are_not_copied():
    rows = small_rows(5, [f"m{i}:input" for i in range(40)])
    picked = pick_rows(rows, np.arange(3, 40))
    assert all(np.shares_memory(part.counts, rows.counts) for part in picked.parts)
