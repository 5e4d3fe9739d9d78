"""What a row takes on disk: of really rounded tensors, all columns and files counted."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from record_builders import record

from numwatch import open_run
from numwatch.snapshot import FORWARD_ROLES, ROLES, Snapshot, StepScalars
from numwatch.stats import AMAX, BINADES, accumulate, accumulate_amax, new_rows
from numwatch.tensor_rows import Rows

BUDGET = 100
N_SLOTS, STEPS = 1000, 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SLOTS = tuple(
    f"transformer.blocks.{i // 24}.{('attn.qkv', 'attn.out', 'mlp.up', 'mlp.down')[i // 6 % 4]}:"
    f"{ROLES[i % 6]}"
    for i in range(N_SLOTS)
)


def tensor(pool, slot, step):
    """A Gaussian, a product of two, a rectified or a heavy-tailed one, at a scale of its slot."""
    rng = np.random.default_rng((slot, step))
    numel = 1 << (10 + slot % 8)
    one, other = (pool[at : at + numel] for at in rng.integers(0, len(pool) - numel, 2).tolist())
    x = (one, one * other, one.relu(), one * other.exp())[slot % 4]
    drift = 0.1 * float(rng.normal())
    return (x * 2.0 ** (-(slot % 17) + drift)).to(DTYPES[slot % len(DTYPES)])


@pytest.fixture(scope="module")
def measured():
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    steps = []
    for step in range(STEPS):
        counts, reals = new_rows(N_SLOTS)
        for slot in range(N_SLOTS):
            accumulate(tensor(pool, slot, step), counts, reals, slot)
        steps.append((counts.numpy(), reals.numpy()))
    return steps


def snapshots(measured, *, full=True):
    scales = np.array([1.0 if slot.endswith(FORWARD_ROLES) else 2.0**16 for slot in SLOTS])
    return [
        Snapshot(
            50 * step, StepScalars(), Rows(SLOTS, *packed, scales, (None,) * N_SLOTS, full=full)
        )
        for step, packed in enumerate(measured)
    ]


def bytes_a_row(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / (N_SLOTS * STEPS)


@pytest.mark.parametrize("each_its_part", [False, True])
def test_a_full_row_takes_a_hundred_bytes_at_most(tmp_path, measured, each_its_part):
    with record(tmp_path) as recorder:
        for snapshot in snapshots(measured):
            recorder.write(snapshot)
            if each_its_part:
                recorder.flush()
    run = open_run(tmp_path)
    table = run.tensors()
    assert table.num_rows == N_SLOTS * STEPS
    # All that was measured is there, exactly.
    lists = table["binades"].to_pylist()
    for at in range(0, table.num_rows, 97):
        counts, reals = (part[at % N_SLOTS] for part in measured[at // N_SLOTS])
        assert lists[at] == np.trim_zeros(counts[:BINADES]).tolist()
        assert table["amax"][at].as_py() == reals[AMAX]
    assert bytes_a_row(tmp_path) < BUDGET


def test_an_amax_only_row_takes_a_tenth_of_that(tmp_path):
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    steps = []
    for step in range(STEPS):
        counts, reals = new_rows(N_SLOTS)
        for slot in range(N_SLOTS):
            accumulate_amax(tensor(pool, slot, step), counts, reals, slot)
        steps.append((counts.numpy(), reals.numpy()))
    with record(tmp_path) as recorder:
        for snapshot in snapshots(steps, full=False):
            recorder.write(snapshot)
    assert bytes_a_row(tmp_path) < BUDGET / 10


def test_encodings_are_such_as_every_reader_of_parquet_knows(tmp_path, measured):
    """Those of format 2.8 (2020); dictionaries, plain values, and bytes of doubles side by side."""
    with record(tmp_path) as recorder:
        recorder.write(snapshots(measured)[0])
    known = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BYTE_STREAM_SPLIT"}
    for part in tmp_path.rglob("*.parquet"):
        group = pq.ParquetFile(part).metadata.row_group(0)
        for i in range(group.num_columns):
            column = group.column(i)
            assert set(column.encodings) <= known
            assert column.compression == "ZSTD"
            split = "BYTE_STREAM_SPLIT" in column.encodings
            assert not split or column.physical_type == "DOUBLE"
