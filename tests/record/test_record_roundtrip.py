import json
import math
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from record_builders import any_rows, any_snapshots, record, small_rows, snapshot, write_steps

from numwatch import open_run
from numwatch.record import (
    SHADOWS,
    STATES,
    STEPS,
    TENSORS,
    UPDATES,
    RecordError,
    iter_rows,
    row_cast,
    row_stats,
)
from numwatch.record.pack import tensors_table
from numwatch.record.schema import TABLES
from numwatch.record.totals import slot_totals
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats import TensorStats, tensor_stats
from numwatch.step_entries import OptimizerState, Shadow, Update
from numwatch.tensor_rows import Cast

DESIGN = {
    "tensors": """attempt step slot numel zeros nans posinfs neginfs amax amin sum sumsq loss_scale
        binade_first binades""",
    "steps": """attempt step epoch batch loss lr grad_norm loss_scale_before loss_scale_after
        found_inf skipped step_seconds numwatch_seconds""",
    "updates": "attempt step slot sampled nonzero ratio storage swallowed edq lost",
}
UNMEASURED = set(TENSORS.names) - {
    "attempt",
    "step",
    "slot",
    "calls",
    "numel",
    "nans",
    "posinfs",
    "neginfs",
    "amax",
    "loss_scale",
}


def same(a, b):
    """Equal, with NaN equal to itself."""
    return repr(a) == repr(b)


def at(snapshot):
    return {"attempt": 0, "step": snapshot.step}


def by_name(rows):
    """Rows with sorted keys, tuples as the lists they are read back as."""
    return [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in sorted(r.items())
        }
        for r in rows
    ]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(snapshots=any_snapshots())
def test_snapshots_come_back_as_they_went(tmp_path_factory, snapshots):
    directory = tmp_path_factory.mktemp("run")
    with record(directory) as recorder:
        for one in snapshots:
            recorder.write(one)
    run = open_run(directory)
    steps = run.steps().to_pylist()
    assert same(by_name(steps), by_name({**at(s), **asdict(s.scalars)} for s in snapshots))
    for table in ("updates", "states", "shadows"):
        kept = TABLES[table].names
        entries = [
            {**at(s), **{name: value for name, value in asdict(entry).items() if name in kept}}
            for s in snapshots
            for entry in getattr(s, table)
        ]
        assert same(by_name(getattr(run, table)().to_pylist()), by_name(entries))
    written = [(s.step, row) for s in snapshots if s.rows for row in s.rows]
    assert same(list(iter_rows(run.tensors())), written)
    assert run.problems == []


def test_the_columns_of_the_design_are_there(tmp_path):
    write_steps(tmp_path, range(2))
    run = open_run(tmp_path)
    for table, columns in DESIGN.items():
        assert set(columns.split()) <= set(getattr(run, table)().column_names)
    schemas = [getattr(run, table)().schema for table in ("tensors", "steps")]
    schemas += [getattr(run, table)().schema for table in ("updates", "states", "shadows")]
    assert schemas == [TENSORS, STEPS, UPDATES, STATES, SHADOWS]


def test_every_column_means_what_the_design_says(tmp_path):
    x = np.array([0.0, -0.0, 1.5, -3.0, 2.0, 0.25, np.nan, np.inf, -np.inf, -np.inf], np.float32)
    import torch

    from numwatch.stats import pack_row

    counts, reals = pack_row(tensor_stats(torch.from_numpy(x)), calls=3)
    rows = replace(
        small_rows(0, ["fc:grad_output"]),
        counts=counts[None],
        reals=reals[None],
        loss_scales=np.array([1024.0]),
        casts=(Cast("e5m2", 16.0, 1, 2),),
    )
    with record(tmp_path) as recorder:
        recorder.write(Snapshot(7, StepScalars(), rows))
    (row,) = open_run(tmp_path).tensors().to_pylist()
    assert row == {
        "attempt": 0,
        "step": 7,
        "slot": "fc:grad_output",
        "calls": 3,
        "numel": 10,
        "zeros": 2,
        "nans": 1,
        "posinfs": 1,
        "neginfs": 2,
        "pow2s": 2,
        "amax": 3.0,
        "amin": 0.25,
        "sum": 0.75,
        "sumsq": 1.5**2 + 9 + 4 + 0.0625,
        "loss_scale": 1024.0,
        "binade_first": -2,
        "binades": [1, 0, 1, 2],
        "cast_format": "e5m2",
        "cast_scale": 16.0,
        "cast_flushed": 1,
        "cast_saturated": 2,
    }


def test_amax_only_rows_are_null_where_nothing_was_measured(tmp_path):
    with record(tmp_path) as recorder:
        recorder.write(snapshot(0, full=False))
        recorder.write(snapshot(1, full=True))
    only, full = open_run(tmp_path).tensors(slot="blocks.0.fc:input").to_pylist()
    assert {name for name, value in only.items() if value is None} == UNMEASURED
    assert (only["amax"], only["numel"], only["calls"]) == (1.0, 10, 1)
    missing = {name for name, value in full.items() if value is None}
    assert missing == {name for name in TENSORS.names if name.startswith("cast_")}
    stats = row_stats(only)
    assert (stats.amax, stats.amin, stats.nonzeros, stats.binades) == (1.0, math.inf, 0, ())
    assert (stats.nans, stats.posinfs, stats.neginfs) == (3, 2, 1)
    assert row_cast(only) is None


def test_an_all_zero_row_has_an_empty_histogram_not_a_missing_one(tmp_path):
    import torch

    from numwatch.stats import pack_row

    counts, reals = pack_row(tensor_stats(torch.zeros(4)))
    rows = replace(small_rows(0, ["a:input"]), counts=counts[None], reals=reals[None])
    with record(tmp_path) as recorder:
        recorder.write(Snapshot(0, StepScalars(), rows))
    (row,) = open_run(tmp_path).tensors().to_pylist()
    assert (row["binades"], row["binade_first"], row["amin"]) == ([], 0, math.inf)


@settings(max_examples=40, deadline=None)
@given(one=any_rows(), other=any_rows())
def test_totals_equal_the_merge_of_the_rows_one_by_one(one, other):
    tables = [
        tensors_table([Snapshot(step, StepScalars(), rows)], 0)
        for step, rows in ((0, one), (1, other))
    ]
    totals = slot_totals(tables)
    for slot in {*one.slots, *other.slots}:
        full, every = [], []
        for rows in (one, other):
            found = [row for row in rows if row.slot == slot]
            every += found
            full += found if rows.full else []
        merged = sum((row.stats for row in full), TensorStats.empty())
        total = totals[slot]
        assert (total.rows, total.full_rows) == (len(every), len(full))
        assert total.amax_only_rows == len(every) - len(full)
        for name in ("nans", "posinfs", "neginfs", "nonfinites"):
            assert getattr(total, name) == sum(getattr(row.stats, name) for row in every)
        assert same(total.stats, merged)
        assert total.amax == max(row.stats.amax for row in every)
        assert total.loss_scale == max(row.loss_scale for row in every)
        casts = [row.cast for row in full if row.cast]
        assert (total.cast is None) == (not casts)
        if casts:
            assert total.cast.flushed == sum(cast.flushed for cast in casts)
            assert total.cast.saturated == sum(cast.saturated for cast in casts)


def test_the_manifest_describes_the_run(tmp_path):
    info = SlotInfo("fc:input", "fc", "input", "Linear", (8, 4), "float16", "fp16", 3)
    with record(tmp_path, versions={"torch": "2.6.0"}) as recorder:
        recorder.describe([info])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["schema"], manifest["attempt"]) == (1, 0)
    assert manifest["precision"] == "16-mixed"
    assert manifest["arguments"] == {"every_n_steps": 50}
    assert {"numwatch", "torch"} == manifest["versions"].keys()
    run = open_run(tmp_path)
    assert run.slots == {"fc:input": info}
    assert (run.precision, run.device) == ("16-mixed", "cpu")
    assert run.manifest == {"schema": 1, "attempts": [manifest]}


def test_rows_are_found_by_slot_module_role_and_step(tmp_path):
    write_steps(tmp_path, range(10), each_its_part=True)
    run = open_run(tmp_path)
    assert run.tensors(slot="blocks.0.fc:input")["step"].to_pylist() == list(range(10))
    assert set(run.tensors(role="weight")["slot"].to_pylist()) == {"blocks.0.fc:weight"}
    assert run.tensors(module="blocks.0.fc", first=3, last=4).num_rows == 4
    assert run.tensors(module="blocks.0", role=None).num_rows == 0
    assert run.steps(first=8)["step"].to_pylist() == [8, 9]


def test_rows_are_found_by_the_role_of_a_parameters_slot(tmp_path):
    slots = ("fc.weight:exp_avg", "fc.weight:exp_avg_sq", "fc:weight")
    infos = [SlotInfo(slot, *slot.split(":"), "AdamW") for slot in slots]
    with record(tmp_path) as recorder:
        recorder.describe(infos)
        recorder.write(Snapshot(0, StepScalars(), small_rows(0, slots)))
    run = open_run(tmp_path)
    assert run.tensors(role="exp_avg")["slot"].to_pylist() == ["fc.weight:exp_avg"]
    assert run.tensors(role="weight")["slot"].to_pylist() == ["fc:weight"]
    with pytest.raises(RecordError, match=r"no role 'exp_av' in .*; did you mean 'exp_avg'"):
        run.tensors(role="exp_av")


def test_every_table_has_its_parts_and_its_range_of_steps(tmp_path):
    update = Update(
        *("fc.weight:update", "bf16", 8, 8, 8),
        *(0.1, 0.5, None, None, None, 0.5),
        lost=True,
        intended="exact",
    )
    with record(tmp_path) as recorder:
        for step in range(4):
            state = OptimizerState("fc.weight:exp_avg", "float32", step)
            shadow = Shadow("fc:grad_output", step, 0, 0, 0, None, None)
            entries = {"updates": (update,), "states": (state,), "shadows": (shadow,)}
            recorder.write(Snapshot(step, StepScalars(), **entries))
            recorder.flush()
    run = open_run(tmp_path)
    for table in ("updates", "states", "shadows"):
        assert len(list((tmp_path / table).glob("*.parquet"))) == 4
        assert getattr(run, table)(first=1, last=2)["step"].to_pylist() == [1, 2]
        assert [piece["step"].to_pylist() for piece in run.batches(table, last=1)] == [[0], [1]]
    assert run.states()["sampled"].to_pylist() == [0, 1, 2, 3]
    assert run.tensors().num_rows == 0


def test_parts_can_be_queried_by_any_parquet_reader(tmp_path):
    import pyarrow.dataset as ds

    write_steps(tmp_path, range(3))
    table = ds.dataset(tmp_path / "tensors", format="parquet").to_table()
    assert table.num_rows == 6
    assert pa.types.is_list(table.schema.field("binades").type)


def test_a_thousand_slots_take_at_most_a_hundred_bytes_a_row(tmp_path):
    """Sizes as in a GPT: 4 Ki to 8 Mi elements, normal to heavy-tailed, drifting."""
    from numwatch.stats import AMAX, AMIN, CALLS, COUNTS, NUMEL, POW2S, REALS, SUM, SUMSQ

    rng = np.random.default_rng(0)
    slots = tuple(f"blocks.{i // 40}.mlp.fc{i % 40}:grad_output" for i in range(1000))
    medians, sigmas = rng.uniform(-16, 2, 1000), rng.choice([1.3, 2.0, 3.0], 1000)
    sizes = 2 ** rng.integers(12, 24, 1000)
    exponents = np.arange(-127, 128)
    with record(tmp_path) as recorder:
        for step in range(50):
            z = (exponents - (medians + rng.normal(0, 0.1, 1000))[:, None]) / sigmas[:, None]
            weights = np.exp(-(z**2) / 2)
            counts, reals = np.zeros((1000, COUNTS), np.int64), np.zeros((1000, REALS))
            counts[:, :255] = rng.multinomial(sizes, weights / weights.sum(axis=1, keepdims=True))
            counts[:, NUMEL], counts[:, CALLS] = sizes, 1
            counts[:, POW2S] = rng.poisson(sizes / 1e4)
            reals[:, AMAX] = np.float32(2.0**medians * rng.uniform(16, 64, 1000))
            reals[:, AMIN] = np.float32(2.0**medians / rng.uniform(1e4, 1e6, 1000))
            reals[:, SUM] = rng.normal(0, 1, 1000) * sizes**0.5
            reals[:, SUMSQ] = rng.uniform(0.9, 1.1, 1000) * sizes
            rows = replace(
                small_rows(step, slots),
                counts=counts,
                reals=reals,
                loss_scales=np.full(1000, 65536.0),
            )
            recorder.write(Snapshot(step, StepScalars(), rows))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert open_run(tmp_path).tensors().num_rows == 50_000
    assert size / 50_000 <= 100


@pytest.mark.parametrize("name", ["run=1", "with space", "ümlaut"])
def test_any_directory_name_will_do(tmp_path, name):
    write_steps(tmp_path / name, range(2))
    assert open_run(tmp_path / name).tensors().schema == TENSORS
