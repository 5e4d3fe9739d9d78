"""The `blocks` table: what comes back is what went in, and old records have none."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_builders import record, snapshot, write_steps

from numwatch import open_run
from numwatch.block_rows import BlockRows
from numwatch.record import BLOCKS, RecordError, iter_blocks, keeper
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats import accumulate_blocks, new_block_rows, tensor_stats
from numwatch.stats.block_layout import BLOCK_COLUMNS, BLOCK_KINDS, BLOCK_ROWS

SLOTS = ("fc:input", "fc:weight", "fc:grad_output")


def blocks_of(*tensors, loss_scale=1.0):
    rows = new_block_rows(len(tensors))
    for row, tensor in zip(rows, tensors, strict=True):
        accumulate_blocks(tensor, row)
    return BlockRows(SLOTS[: len(tensors)], rows.numpy(), np.full(len(tensors), loss_scale))


def with_blocks(step, blocks):
    return Snapshot(step, StepScalars(), blocks=blocks)


@st.composite
def any_block_rows(draw):
    n = draw(st.integers(1, 3))
    counts = np.zeros((n, BLOCK_ROWS, BLOCK_COLUMNS), np.int64)
    columns = st.dictionaries(st.integers(0, BLOCK_COLUMNS - 1), st.integers(0, 2**40), max_size=9)
    for row in counts.reshape(-1, BLOCK_COLUMNS):
        for column, count in draw(columns).items():
            row[column] = count
    scales = np.array([draw(st.floats(min_value=5e-324, max_value=1e300)) for _ in range(n)])
    return BlockRows(SLOTS[:n], counts, scales)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(blocks=st.lists(any_block_rows(), min_size=1, max_size=3))
def test_blocks_come_back_as_they_went(tmp_path_factory, blocks):
    directory = tmp_path_factory.mktemp("run")
    with record(directory) as recorder:
        for step, rows in enumerate(blocks):
            recorder.write(with_blocks(step, rows))
    run = open_run(directory)
    written = [(step, row) for step, rows in enumerate(blocks) for row in rows]
    assert list(iter_blocks(run.blocks())) == written
    assert run.blocks().schema == BLOCKS
    assert run.problems == []


def test_every_column_means_what_its_histogram_says(tmp_path):
    x = torch.tensor([[3.5, -1.0, 0.25, 0.0], [0.0, 0.0, -0.0, torch.nan]])
    with record(tmp_path) as recorder:
        recorder.write(with_blocks(7, blocks_of(x, loss_scale=8.0)))
    row = open_run(tmp_path).blocks().to_pylist()[0]
    assert row == {
        "attempt": 0,
        "step": 7,
        "slot": "fc:input",
        "size": 16,
        "direction": "last",
        "loss_scale": 8.0,
        "blocks": 1,
        "zero_blocks": 1,
        # 3.5 = 1.75 * 2^1 does not exceed 1.75; 1 and 0.25 stand below their powers of two.
        "below": [[], [], [1, 0, 1, 0, 1], [], []],
        "tops": [[0] * 4, [0] * 4, [0, 1, 0, 0], [0] * 4, [0] * 4],
        "amax_first": 1,
        "amaxes": [1],
        "peaks": [0, 0, 1, 0, 0],
        "elements": [[0], [0], [3], [0], [0]],
        "near": 1,
        "edge": 0,
        "deep": 0,
    }


def test_rows_are_found_by_slot_module_role_and_step(tmp_path):
    infos = [SlotInfo(slot, *slot.split(":"), "Linear") for slot in SLOTS]
    with record(tmp_path) as recorder:
        recorder.describe(infos)
        for step in range(4):
            recorder.write(with_blocks(step, blocks_of(*torch.randn(3, 20, 20))))
            recorder.flush()
    run = open_run(tmp_path)
    assert run.rows("blocks") == 4 * 3 * len(BLOCK_KINDS)
    found = run.blocks(slot="fc:weight", first=2)
    assert found["step"].to_pylist() == [2] * 4 + [3] * 4
    kinds = zip(found["size"].to_pylist(), found["direction"].to_pylist(), strict=True)
    assert set(kinds) == set(BLOCK_KINDS)
    assert set(run.blocks(role="input")["slot"].to_pylist()) == {"fc:input"}
    with pytest.raises(RecordError, match="did you mean 'fc:weight'"):
        run.blocks(slot="fc:wieght")


def test_an_old_record_has_an_empty_table(tmp_path):
    write_steps(tmp_path, range(2))
    assert not (tmp_path / "blocks").exists()
    run = open_run(tmp_path)
    assert run.blocks().num_rows == 0
    assert run.blocks().schema == BLOCKS
    assert list(iter_blocks(run.blocks())) == []


def test_losing_the_table_loses_nothing_else(tmp_path):
    with record(tmp_path) as recorder:
        recorder.write(snapshot(0))
        recorder.write(with_blocks(1, blocks_of(torch.ones(4))))
    shutil.rmtree(tmp_path / "blocks")
    run = open_run(tmp_path)
    assert (run.blocks().num_rows, run.steps().num_rows, run.problems) == (0, 2, [])


def test_many_blocks_are_flushed_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "PACK_BYTES", 1)
    monkeypatch.setattr(keeper, "MAX_PACKED_BYTES", 1 << 15)
    blocks = blocks_of(*torch.randn(3, 4, 4))
    with record(tmp_path) as recorder:
        for step in range(20):
            recorder.write(with_blocks(step, blocks))
    assert len(list((tmp_path / "blocks").glob("*.parquet"))) > 1
    assert open_run(tmp_path).blocks()["step"].unique().to_pylist() == list(range(20))


def test_a_row_takes_little_room(tmp_path):
    tensors = torch.randn(3, 256, 256) * torch.randn(3, 256, 1).exp()
    with record(tmp_path) as recorder:
        for step in range(20):
            recorder.write(with_blocks(step, blocks_of(*tensors.roll(step, 1))))
    size = sum(part.stat().st_size for part in (tmp_path / "blocks").iterdir())
    # Of an operand, four rows: at a tenth of the full steps what three rows of `tensors` may take.
    assert size / (20 * 3) < 3 * 10 * 100


def test_the_statistics_of_a_tensor_hold_the_same_histograms(tmp_path):
    x = torch.randn(40, 50)
    with record(tmp_path) as recorder:
        recorder.write(with_blocks(0, blocks_of(x)))
    found = [row.histogram for _, row in iter_blocks(open_run(tmp_path).blocks())]
    assert set(found) == set(tensor_stats(x, blocks=(16, 32)).blocks.histograms)
