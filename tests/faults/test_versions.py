"""Records of other versions: older ones are read, newer ones refused in a line."""

import json
import shutil
from pathlib import Path

import pytest
from faults_harness import assert_harmless, steps_of, train

import numwatch
from numwatch.record import RecordError, iter_rows
from numwatch.report import summarize

OLDER = Path(__file__).parent / "older"
"""Six FP16 steps, two of them skipped, recorded by commit 6a1ecea: no updates, states, blocks or
operations yet, and no columns for several optimizers."""


def test_an_older_record_is_read_in_every_way():
    run = numwatch.open_run(OLDER)
    assert run.steps()["step"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert run.steps()["skipped"].to_pylist() == [False, True, False, False, True, False]
    assert run.steps()["nonfinite_parameters"].null_count == 6
    rows = {(step, row.slot): row.stats for step, row in iter_rows(run.tensors())}
    assert len(rows) == 33
    assert rows[0, "0:input"].numel == 32 * 8
    assert {event["kind"] for event in run.events()} == {
        *("start", "overflow", "skip", "backoff", "nonfinite")
    }
    summary = summarize(run)
    assert (summary.steps, summary.skips.count) == (6, 2)
    numwatch.diagnose(run)
    for target in ("amp", "fp8", "mxfp8"):
        numwatch.recommend(run, target=target)
    assert run.problems == []


def test_a_run_goes_on_in_an_older_record(tmp_path):
    shutil.copytree(OLDER, tmp_path / "run")
    found = train(tmp_path / "run", steps=3)
    assert (found.error, found.warned) == (None, [])
    run = numwatch.open_run(tmp_path / "run")
    assert [attempt["attempt"] for attempt in run.attempts] == [0, 1]
    assert run.steps()["step"].to_pylist() == [0, 1, 2]


def test_beside_a_newer_record_the_run_goes_on_unwatched(tmp_path):
    record = tmp_path / "numwatch"
    shutil.copytree(OLDER / "numwatch", record)
    manifest = json.loads((record / "manifest.json").read_text())
    (record / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    before = {path: path.read_bytes() for path in record.rglob("*") if path.is_file()}
    assert_harmless(train(tmp_path), train(), "written by a newer numwatch")
    assert {path: path.read_bytes() for path in record.rglob("*") if path.is_file()} == before
    with pytest.raises(RecordError, match="upgrade numwatch to read it"):
        steps_of(tmp_path)
