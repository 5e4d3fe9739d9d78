"""`numwatch.diagnose` over runs of all kinds, hostile ones among them."""

import importlib
import json
import math
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from diagnosis_builders import Step, flat, hurting, layers, make_run, spread

import numwatch
from numwatch.diagnose import Evidence, Finding, apply
from numwatch.errors import NumwatchError
from numwatch.record import RecordError

INFOS = layers(3)


def healthy_steps(n=12):
    """Tensors well inside FP16, a loss that falls."""
    return [
        Step(
            {"loss": 2.0 - number / n, "loss_scale_before": 1024.0, "loss_scale_after": 1024.0},
            {info.slot: spread(1.0, dtype=torch.float16) for info in INFOS},
        )
        for number in range(n)
    ]


def spoilt(value, n=6):
    """Every tensor and the loss are `value` at every step."""
    tensors = {info.slot: torch.full((8,), value) for info in INFOS}
    return [Step({"loss": value}, tensors) for _ in range(n)]


def told(findings):
    """All findings, none of them about a rule that failed."""
    found = list(flat(findings))
    assert [each.cause for each in found if each.rule == "rule-failed"] == []
    return found


def test_the_attribute_is_the_function_and_the_module_stays_importable():
    assert callable(numwatch.diagnose)
    module = importlib.import_module("numwatch.diagnose")
    assert numwatch.diagnose is module.diagnose
    assert importlib.import_module("numwatch.diagnose.finding").Finding is Finding
    assert callable(numwatch.diagnose)
    fresh = "import numwatch.diagnose.chain, numwatch; assert callable(numwatch.diagnose)"
    subprocess.run([sys.executable, "-c", fresh], check=True)


def test_a_healthy_run_has_no_finding(tmp_path):
    assert told(numwatch.diagnose(make_run(tmp_path, INFOS, healthy_steps()))) == []


def test_a_path_does_as_well_as_a_run(tmp_path):
    run = make_run(tmp_path, INFOS, spoilt(math.nan))
    assert numwatch.diagnose(tmp_path) == numwatch.diagnose(str(tmp_path)) == numwatch.diagnose(run)
    with pytest.raises(RecordError):
        numwatch.diagnose(tmp_path / "nowhere")


def test_figures_are_plain_numbers(tmp_path):
    for value in (math.nan, math.inf, 0.0):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = make_run(tmp_path / "run", INFOS, spoilt(value))
        for each in told(numwatch.diagnose(run)):
            assert each.severity in ("critical", "warning", "info")
            assert all((each.cause, each.cure, each.source))
            for figure in each.evidence:
                json.dumps(figure.value)
                assert figure.step is None or type(figure.step) is int


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "unknown"])
def test_nothing_finite_anywhere(tmp_path, value, precision):
    found = told(numwatch.diagnose(make_run(tmp_path, INFOS, spoilt(value), precision=precision)))
    assert hurting(found)[0] == "nan-in-parameter"
    assert found[0].severity == "critical"


def test_no_steps_at_all(tmp_path):
    (only,) = numwatch.diagnose(make_run(tmp_path, INFOS, []))
    assert (only.rule, only.severity) == ("no-steps", "info")
    assert "no step" in only.cause


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_died_in_its_first_step_is_reproduced_from_a_capsule_alone(tmp_path, kept):
    events = [("exception", 0, {"text": "RuntimeError: no"})]
    events += [("capsule", 0, {"reason": "exception"})] if kept else []
    (only,) = numwatch.diagnose(make_run(tmp_path, [], [], events=events))
    assert only.rule == "no-steps"
    assert "RuntimeError: no ended the run in its first" in only.cause
    assert ("numwatch reproduce" in only.cure) is kept


@pytest.mark.parametrize("n", [1, 2])
def test_a_run_that_died_early_is_told_of_its_nan(tmp_path, n):
    roots = numwatch.diagnose(make_run(tmp_path, INFOS, spoilt(math.nan, n)))
    assert hurting(told(roots))[0] == "nan-in-parameter"


def test_one_healthy_step(tmp_path):
    assert hurting(told(numwatch.diagnose(make_run(tmp_path, INFOS, healthy_steps(1))))) == []


def test_no_gradients_and_no_loss(tmp_path):
    forward = [info for info in INFOS if not info.scaled]
    steps = [Step({"loss": None}, {i.slot: spread(1.0) for i in forward}) for _ in range(6)]
    assert told(numwatch.diagnose(make_run(tmp_path, INFOS, steps))) == []


def test_no_rows(tmp_path):
    assert told(numwatch.diagnose(make_run(tmp_path, [], [Step() for _ in range(6)]))) == []


def test_slots_without_a_description(tmp_path):
    """A run killed before it described its slots still has the rows."""
    found = told(numwatch.diagnose(make_run(tmp_path, [], spoilt(math.nan))))
    assert "nan-in-parameter" in hurting(found)


def test_two_attempts(tmp_path):
    make_run(tmp_path, INFOS, healthy_steps(6))
    run = make_run(tmp_path, INFOS, spoilt(math.nan, 3))
    assert len(run.attempts) == 2
    assert hurting(told(numwatch.diagnose(run)))[0] == "nan-in-parameter"


def test_truncated_parts_cost_only_themselves(tmp_path):
    make_run(tmp_path, INFOS, spoilt(math.nan))
    for part in (*(tmp_path / "tensors").glob("*.parquet"), *(tmp_path / "steps").glob("*")):
        whole = part.read_bytes()
        for length in (0, 7, len(whole) // 2, len(whole) - 1):
            part.write_bytes(whole[:length])
            run = numwatch.open_run(tmp_path)
            told(numwatch.diagnose(run))
            assert run.problems
        part.write_bytes(whole)
    assert hurting(told(numwatch.diagnose(tmp_path))) != []


@pytest.mark.parametrize("table", ["tensors", "steps"])
def test_missing_columns_are_damage_and_no_traceback(tmp_path, table):
    make_run(tmp_path, INFOS, spoilt(math.nan))
    (part,) = (tmp_path / table).glob("*.parquet")
    whole = pq.read_table(part)
    for name in whole.column_names:
        pq.write_table(whole.drop_columns([name]), part)
        told(numwatch.diagnose(tmp_path))


def test_events_that_are_not_what_they_should_be(tmp_path):
    make_run(tmp_path, INFOS, spoilt(math.nan, 3))
    broken = [
        {"phase": "forward"},
        {"phase": "data", "inputs": [{"nonfinite": None}, {"nonfinite": "many"}], "tensor": 7},
        {"phase": "forward", "inputs": [None, {"low": "x"}], "module": None, "operation": None},
        {"phase": 3, "inputs": "no"},
        {},
    ]
    lines = [json.dumps({"attempt": 0, "step": 1, "kind": "origin", **each}) for each in broken]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write("\n".join([*lines, "{", "3"]) + "\n")
    assert hurting(told(numwatch.diagnose(tmp_path)))


def test_a_lost_manifest_is_a_clear_word(tmp_path):
    make_run(tmp_path, INFOS, spoilt(math.nan))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(NumwatchError, match=r"manifest\.json"):
        numwatch.diagnose(tmp_path)


def test_a_rule_that_fails_costs_only_itself(tmp_path):
    def broken_rule(evidence):
        yield from numwatch.diagnose(evidence.run)
        raise KeyError("what\nis this")

    def another(evidence):
        yield Finding("another", "info", len(evidence.steps), None, (), "c", "d", "policy")

    evidence = Evidence(make_run(tmp_path, INFOS, healthy_steps(2)))
    failed, found = apply([broken_rule, another], evidence)
    assert (failed.rule, failed.severity, found.rule) == ("rule-failed", "info", "another")
    assert "broken-rule" in failed.cause
    assert "KeyError" in failed.cause
    assert "\n" not in failed.cause


def test_progress_is_told(tmp_path):
    run = make_run(tmp_path, INFOS, healthy_steps(3))
    rows = []
    numwatch.diagnose(run, progress=rows.append)
    assert sum(rows) == run.rows("tensors")
