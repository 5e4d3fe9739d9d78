"""Records that no numwatch wrote: a clear word, never a traceback."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from thorough import every

import numwatch
from numwatch.diagnose.compare import compare
from numwatch.errors import NumwatchError
from numwatch.recipes.spec import parse_any_recipe
from numwatch.record.schema import TABLES
from numwatch.replay import replay
from numwatch.report.summary import summarize

FILLED = [name for name in TABLES if name != "ranks"]
"""The tables that one process fills."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A real FP16 run with a skipped step and a failed one, every table filled."""
    directory = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    with numwatch.watch(
        model,
        optimizer,
        scaler=scaler,
        dir=directory,
        every_n_steps=2,
        shadow_every_n_steps=2,
        summary=False,
    ) as watch:
        for step in range(8):
            x = torch.randn(64, 32) * (float("nan") if step == 5 else 1.0)

            def loss_of(model, x=x):
                return model(x).float().square().mean()

            watch.shadow(loss_of, x)
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(model)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss=loss)
            optimizer.zero_grad()
    return directory


@pytest.fixture
def copied(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    return directory / "numwatch"


def read_all(directory, whole):
    """Whatever reads a record; returns the problems that were told."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = numwatch.open_run(directory)
        numwatch.diagnose(run)
        compare(run, numwatch.open_run(whole))
        summarize(run).as_dict()
    assert all("\n" not in problem for problem in run.problems)
    return run.problems


def parts(directory, table):
    return sorted((directory / table).glob("*.parquet"))


def scalars_for(kind):
    if pa.types.is_floating(kind):
        return (np.nan, np.inf, -np.inf, -1.0, 0.0, 1e308, 5e-324)
    if pa.types.is_integer(kind):
        top = np.iinfo(f"int{kind.bit_width}").max
        return (-1, 0, top, -top - 1)
    return (True, False) if pa.types.is_boolean(kind) else ("", ":", "no such", "\N{SNOWMAN}" * 40)


def values_for(kind, n):
    """Columns of a type that hold what numwatch never writes, or only rarely."""
    yield pa.nulls(n, kind)
    if not pa.types.is_list(kind):
        yield from (pa.array([value] * n, kind) for value in scalars_for(kind))
        return
    yield pa.array([[]] * n, kind)
    yield pa.array([[None]] * n, kind)
    for inner in values_for(kind.value_type, 300):
        yield pa.array([inner.to_pylist()] * n, kind)


def test_the_record_fills_every_table(whole):
    run = numwatch.open_run(whole)
    assert [name for name in TABLES if run.rows(name)] == FILLED


@pytest.mark.slow
@pytest.mark.parametrize("table", FILLED)
def test_columns_of_any_values_are_read_or_told(table, copied, whole):
    (first, *_) = parts(copied, table)
    content = pq.read_table(first)
    # The values of one column after another: each third one misses none of a type's for long.
    changed = [
        (place, pa.field(field.name, field.type), values)
        for place, field in enumerate(content.schema)
        for values in values_for(field.type, content.num_rows)
    ]
    for place, loose, values in every(3, changed):
        pq.write_table(content.set_column(place, loose, values), first)
        read_all(copied, whole)


def test_the_least_loss_scale_of_fp64_is_counted_with_quietly(copied):
    for path in parts(copied, "tensors"):
        content = pq.read_table(path)
        place = content.column_names.index("loss_scale")
        slots = content["slot"].to_pylist()
        values = pa.array([5e-324 if slot.endswith(":grad_output") else 1.0 for slot in slots])
        pq.write_table(content.set_column(place, "loss_scale", values), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = numwatch.open_run(copied)
        for target in ("fp8", "nvfp4"):
            numwatch.recommend(run, target=target)
        for recipe in ("static:scale=64", "delayed:history=2", "current", "rowwise", "nvfp4"):
            replay(run, parse_any_recipe(recipe))
    assert run.problems == []


@pytest.mark.parametrize("amax", [np.nan, -1.0, np.inf])
def test_an_amax_that_no_tensor_has_is_told(amax, copied, whole):
    for path in parts(copied, "tensors"):
        content = pq.read_table(path)
        place = content.column_names.index("amax")
        values = pa.array([amax] * content.num_rows)
        pq.write_table(content.set_column(place, "amax", values), path)
    problems = read_all(copied, whole)
    assert problems
    assert all("amax" in problem for problem in problems)
    replayed = replay(numwatch.open_run(copied), parse_any_recipe("grad-scaler"))
    assert replayed.slots == ()


@pytest.mark.parametrize("table", FILLED)
def test_columns_that_are_missing_are_told(table, copied, whole):
    for path in parts(copied, table):
        content = pq.read_table(path)
        pq.write_table(content.drop_columns(content.column_names[-1]), path)
    last = TABLES[table].field(len(TABLES[table]) - 1)
    assert bool(read_all(copied, whole)) or last.nullable


@pytest.mark.parametrize("table", FILLED)
def test_a_table_that_is_gone_or_a_file_costs_only_itself(table, copied, whole):
    shutil.rmtree(copied / table)
    read_all(copied, whole)
    (copied / table).write_text("a file")
    read_all(copied, whole)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        "\N{SNOWMAN}",
        '{"attempt": 0, "step": "1", "kind": "skip"}',
        '{"attempt": 0, "step": 1e99, "kind": "skip"}',
        '{"attempt": 0, "step": ' + "9" * 400 + ', "kind": "skip"}',
        '{"attempt": 0, "step": 1, "kind": ["skip"]}',
        '{"attempt": 0, "step": 1, "kind": "origin", "phase": 3}',
        '{"attempt": 0, "step": 1, "kind": "origin", "inputs": [7]}',
        '{"attempt": 0, "step": 1, "kind": "origin", "inputs": "x"}',
        '{"attempt": 0, "step": 1, "kind": "collapse", "scale": "low"}',
        '{"attempt": 0, "step": 1, "kind": "memory", "bytes": null}',
        '{"attempt": 0, "step": 1, "kind": "start", "numwatch_seconds": "long"}',
    ],
)
def test_events_of_any_shape_are_told(line, copied, whole):
    with (copied / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert any("events.jsonl" in problem for problem in read_all(copied, whole))


@pytest.mark.parametrize("name", ["slots", "precision", "device", "flags", "arguments", "versions"])
@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [[]], [3], {"a": 1}, 1e400])
def test_manifests_of_any_types_are_read_or_told(name, value, copied, whole):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, name: value}))
    read_all(copied, whole)


def test_an_empty_directory_is_one_line(tmp_path):
    (tmp_path / "numwatch").mkdir()
    with pytest.raises(NumwatchError) as raised:
        numwatch.open_run(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_record_of_itself_twice_is_compared(whole):
    assert compare(numwatch.open_run(whole), numwatch.open_run(Path(whole))).first is None
