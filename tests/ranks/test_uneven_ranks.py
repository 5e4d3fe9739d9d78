"""Ranks that skip modules, stop, count otherwise or break: nobody hangs, the record is right."""

import json
import math

import pytest
from launch import run_ranks
from uneven_ranks import RUNS

import numwatch

UNEVEN = (
    "stages",
    "local_experts",
    "one_rank_overflows",
    "broken_rank",
    "uneven_steps",
    "raising_rank",
    "late_copies",
    "two_watches",
    "named_with_a_space",
    "first_rank_missing",  # these last: the ranks' next meetings are not the same
    "first_rank_alone",
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uneven")
    outputs = run_ranks("uneven_ranks.py", 2, directory, *UNEVEN, timeout=200)
    told = [dict(map(json.loads, output.splitlines())) for output in outputs]
    return directory, told


@pytest.mark.slow
def test_a_hundred_runs_with_modules_skipped_at_random_never_hang(tmp_path):
    run_ranks("uneven_ranks.py", 2, tmp_path, "skipped_modules", timeout=280)
    calls = set()
    for run in range(RUNS):
        rows = numwatch.open_run(tmp_path / "skipped_modules" / str(run)).tensors(role="input")
        found = {(row["step"], row["slot"]): row["calls"] for row in rows.to_pylist()}
        assert [found[step, "stem:input"] for step in (0, 1)] == [2, 2]
        calls |= {(slot, count) for (_, slot), count in found.items()}
    # Some branches ran on one rank alone, and some on both.
    assert {(f"branches.{i}:input", n) for i in range(3) for n in (1, 2)} <= calls


def test_the_stages_of_a_pipeline_are_all_in_the_record(uneven):
    run = numwatch.open_run(uneven[0] / "stages")
    rows = {row["slot"]: row for row in run.tensors().to_pylist()}
    for stage in (0, 1):
        assert rows[f"stage{stage}:weight"]["numel"] == 16
        assert rows[f"stage{stage}:input"]["numel"] == 8
        assert run.slots[f"stage{stage}:input"].dtype == "float32"
        assert rows[f"stage{stage}.weight:update"]["numel"] == 16
    # Of 16 weights and 4 biases in each stage the gradient is 2.
    assert run.steps()["grad_norm"].to_pylist() == [pytest.approx(math.sqrt(2 * 20 * 4))]


def test_that_ranks_hold_different_experts_under_one_name_is_said(uneven):
    run = numwatch.open_run(uneven[0] / "local_experts")
    rows = {row["slot"]: row for row in run.tensors().to_pylist()}
    assert (rows["expert:weight"]["numel"], rows["expert:weight"]["amax"]) == (16, 1.0)
    (event,) = (event for event in run.events() if event["kind"] == "unseen")
    assert event["note"] == (
        "other ranks' expert:weight: ranks hold different weights under one name, and rank 0's "
        "alone are recorded, with their updates and state"
    )


def test_the_first_rank_that_overflowed_is_kept(uneven):
    run = numwatch.open_run(uneven[0] / "one_rank_overflows")
    ranks = {(row["step"], row["slot"]): row for row in run.ranks().to_pylist()}
    for slot in ("0:input", "0:output", "1:input", "1:output"):
        row = ranks[1, slot]
        assert (row["nonfinite_ranks"], row["nonfinite_rank"]) == (1, 1)
        assert (ranks[0, slot]["nonfinite_ranks"], ranks[0, slot]["nonfinite_rank"]) == (0, None)
    (event,) = [event for event in run.events() if event["kind"] == "nonfinite"]
    assert event["slots"][0] == "0:input"
    assert event["ranks"][0] == 1


@pytest.mark.parametrize("scenario", ["broken_rank", "uneven_steps", "raising_rank"])
def test_a_rank_that_is_gone_leaves_the_record_of_the_first(uneven, scenario):
    directory, (first, other) = uneven
    (warning,) = first[scenario]
    assert "numwatch records rank 0 alone from step " in warning
    run = numwatch.open_run(directory / scenario)
    steps = {"broken_rank": 20, "uneven_steps": 6, "raising_rank": 5}[scenario]
    assert run.steps()["step"].to_pylist() == list(range(steps))
    (alone,) = [event for event in run.events() if event["kind"] == "alone"]
    calls = {row["step"]: row["calls"] for row in run.tensors(slot="stem:input").to_pylist()}
    assert calls == {step: 2 if step < alone["step"] else 1 for step in range(steps)}
    assert 0 < alone["step"] < steps
    assert len(other[scenario]) == (1 if scenario == "broken_rank" else 0)


def test_a_first_rank_that_watches_alone_is_told_so(uneven):
    directory, (first, _) = uneven
    (warning,) = first["first_rank_alone"]
    assert "not every one of 2 ranks watches" in warning
    assert "Every rank must watch" in warning
    calls = numwatch.open_run(directory / "first_rank_alone").tensors(slot="stem:input")["calls"]
    assert calls.to_pylist() == [1, 1, 1, 1]


def test_copies_that_arrive_late_are_joined_step_by_step(uneven):
    calls = numwatch.open_run(uneven[0] / "late_copies").tensors(slot="stem:input")["calls"]
    assert calls.to_pylist() == [2] * 12


def test_two_watches_of_one_run_do_not_wait_for_each_other(uneven):
    for run in range(10):
        for name, steps in ((str(run), 2), (f"{run}-other", 1)):
            rows = numwatch.open_run(uneven[0] / "two_watches" / name).tensors(slot="stem:output")
            assert rows["calls"].to_pylist() == [2 * 2 // steps] * steps


def test_a_weight_whose_name_holds_a_space_counts_once(uneven):
    rows = numwatch.open_run(uneven[0] / "named_with_a_space").tensors(first=0, last=0).to_pylist()
    numel = {row["slot"]: row["numel"] for row in rows}
    assert numel["my layer:weight"] == numel["my layer.weight:update"] == 16


def test_a_run_whose_first_rank_does_not_watch_is_told_on_another(uneven):
    directory, (first, other) = uneven
    assert first["first_rank_missing"] == []
    (warning,) = other["first_rank_missing"]
    assert "rank 0, which keeps the record of all, does not watch" in warning
    assert not (directory / "first_rank_missing").exists()
