import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused

import numwatch.demo
from numwatch import open_run, tensor_stats
from numwatch.errors import NumwatchError
from numwatch.formats import format_rows
from numwatch.record import Recorder
from numwatch.report import summarize
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.stats import pack_row
from numwatch.step_entries import OptimizerState, Shadow, Update
from numwatch.tensor_rows import Rows


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "logs" / "numwatch"
    with Recorder.open(directory, precision="32-true", device="cpu", arguments={}) as recorder:
        for step in range(6):
            recorder.write(Snapshot(step, StepScalars(epoch=step // 3, loss=6.0 - step)))
    return directory


def test_nowhere_is_one_line_and_exit_2(command):
    refused(command("report", "nowhere"), "no such directory: nowhere")


def test_a_folder_without_a_record_is_one_line(command, tmp_path):
    refused(command("report", tmp_path), "no record in or below")


def test_a_damaged_manifest_is_one_line(command, run_dir):
    (run_dir / "manifest.json").write_text('{"schema": 1,')
    refused(command("report", run_dir), "can't be read as JSON")


def test_a_truncated_part_is_said_in_the_report(command, run_dir):
    part = run_dir / "steps" / "attempt-000-part-00000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    code, out, err = command("report", run_dir)
    assert code == 2
    assert err == (
        f"numwatch: 1 part can't be read in {run_dir}; the report rests on what is left\n"
    )
    assert "attempt-000-part-00000.parquet is damaged and left out" in out
    assert json.loads(command("report", run_dir, "--json")[1])["steps"] == 0
    refused(command("report", run_dir, "--epoch", "0"), "none, but 1 part can't be read")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["report"], "Missing argument"),
        (["report", ".", "--bogus"], "No such option"),
        (["report", ".", "--worst", "0"], "--worst"),
        (["report", ".", "--epoch", "x"], "--epoch"),
        (["repot", "."], "No such command 'repot'"),
        (["demo", "--steps", "0"], "--steps"),
    ],
)
def test_bad_options_are_one_line_that_points_to_the_help(command, arguments, text):
    refused(command(*arguments), text, "(see `numwatch --help`)")


def test_an_epoch_the_record_does_not_hold(command, run_dir):
    refused(
        command("report", run_dir, "--epoch", "9"),
        f"no epoch 9 in {run_dir}: the record holds epochs 0 to 1",
    )


def test_report_prints_the_summary(command, run_dir):
    code, out, _ = command("report", run_dir.parent)
    assert code == 0
    assert out.splitlines() == [
        "numwatch · whole run · steps 0–5 · 32-true · cpu",  # noqa: RUF001
        "loss        6 → 1",
        "no tensor rows yet",
    ]
    code, out, _ = command("report", run_dir, "--epoch", "1")
    assert out.splitlines()[1] == "loss        3 → 1"


def test_report_as_json_is_the_same_content(command, run_dir):
    code, out, err = command("report", run_dir, "--json", "--epoch", "0")
    assert (code, err) == (0, "")
    assert json.loads(out) == summarize(open_run(run_dir), epoch=0).as_dict()


@pytest.fixture
def watched_run(tmp_path):
    """A record with something in each table."""
    directory = tmp_path / "watched"
    counts, reals = pack_row(tensor_stats(torch.tensor([2.0**-26, 1.0])))
    rows = Rows(("fc:grad_output",), counts[None], reals[None], np.array([1.0]), (None,), full=True)
    update = Update(
        *("fc.weight:update", "bf16", 8, 8, 8, 0.1, 0.25, 0.5, None, 0.1, 0.75),
        lost=True,
        intended="exact",
    )
    state = OptimizerState("fc.weight:exp_avg_sq", "float16", 8, eps=1e-8, eps_stored=0.0)
    shadow = Shadow("fc:grad_output", 8, 2, 5, 3, 0.125, 0.5)
    with Recorder.open(directory, precision="bf16-true", device="cpu", arguments={}) as recorder:
        recorder.write(Snapshot(0, StepScalars(), rows, (update,), (state,), (shadow,)))
    return directory


@pytest.mark.parametrize(
    ("option", "cells"),
    [
        ("--loss-scale", ["2^2", "0.0 %", "fits"]),
        ("--updates", ["fc.weight", "8", "0.1", "25.0 % !", "0.75"]),
        ("--states", ["fc.weight:exp_avg_sq", "float16", "1e-08 → 0"]),
        ("--shadow", ["fc:grad_output", "50.0 %", "62.5 %", "25.0 %", "0.12", "0.5"]),
    ],
)
def test_report_prints_the_table_it_is_asked_for(command, watched_run, option, cells):
    code, out, err = command("report", watched_run, option)
    assert (code, err) == (0, "")
    assert out.startswith("numwatch · whole run · step 0 · bf16-true · cpu · 1 slot, 1 parameter")
    (line,) = [line for line in out.splitlines() if all(cell in line for cell in cells)]
    positions = [line.index(cell) for cell in cells]
    assert positions == sorted(positions)


def test_report_prints_several_tables_in_one_order(command, watched_run):
    out = command("report", watched_run, "--shadow", "--updates")[1]
    assert out.index("updates, and what") < out.index("gradients beside those")
    assert "optimizer's state" not in out


def test_the_json_holds_every_table(command, watched_run):
    plain = command("report", watched_run, "--json")[1]
    assert command("report", watched_run, "--json", "--updates")[1] == plain
    content = json.loads(plain)
    assert content["updates"]["parameters"][0]["swallowed"] == 0.25
    assert content["states"][0]["eps_stored"] == 0.0
    assert content["shadows"][0]["cosine"] == 0.5
    assert content["window"]["window"]["low"] == 2


def test_the_help_teaches_the_tables(command):
    out = command("report", "--help")[1]
    for option in ("--loss-scale", "--updates", "--states", "--shadow"):
        assert option in out


def test_formats_is_a_table_of_all_formats(command):
    code, out, _ = command("formats")
    lines = out.splitlines()
    assert code == 0
    names = {line.split()[0] for line in lines if line}
    assert {row["name"] for row in format_rows()} <= names
    assert max(map(len, lines)) <= 110
    (fp16,) = [line for line in lines if line.startswith("fp16 ")]
    assert fp16.split() == [
        *("fp16", "16", "5/10", "65504", "2^-14", "2^-24", "2^-10", "2^-25", "40", "inf,", "nan")
    ]
    (e4m3,) = [line for line in lines if line.startswith("e4m3 ")]
    assert e4m3.split() == [
        *("e4m3", "8", "4/3", "448", "2^-6", "2^-9", "2^-3", "2^-10", "18", "nan")
    ]


def test_formats_as_json(command):
    code, out, _ = command("formats", "--json")
    assert code == 0
    assert json.loads(out) == format_rows()


def test_version_and_help(command):
    code, out, _ = command("--version")
    assert (code, out.split()[0]) == (0, "numwatch")
    for arguments in ((), ("--help",)):
        code, out, _ = command(*arguments)
        assert code == 0
        assert all(name in out for name in ("report", "formats", "demo"))


def test_demo_hands_its_options_on(command, monkeypatch):
    calls = []
    monkeypatch.setattr(numwatch.demo, "run_demo", lambda **given: calls.append(given))
    assert command("demo")[0] == 0
    assert (
        command("demo", "--precision", "fp8", "--steps", 5, "--device", "cpu", "--out", "x")[0] == 0
    )
    assert calls == [
        {"precision": "16-mixed", "steps": None, "device": "auto", "out": Path("demo-run")},
        {"precision": "fp8", "steps": 5, "device": "cpu", "out": Path("x")},
    ]


def test_an_error_of_numwatch_below_is_one_line(command, monkeypatch):
    def fail(**_):
        raise NumwatchError("unknown precision '17-mixed';\n did you mean '16-mixed'?")

    monkeypatch.setattr(numwatch.demo, "run_demo", fail)
    refused(command("demo"), "unknown precision '17-mixed'; did you mean '16-mixed'?")


def test_a_reader_that_leaves_early_is_no_error(run_dir):
    process = subprocess.Popen(
        [sys.executable, "-m", "numwatch.cli", "formats"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


PLANTED = Path(__file__).parent / "forensics"


@pytest.fixture(scope="session")
def planted_runs(tmp_path_factory):
    """A run whose forward leaves BF16 at step 3, with a capsule; and a healthy one."""
    sys.path.insert(0, str(PLANTED))
    from planted import Linear, batches, fit, too_large

    directory = tmp_path_factory.mktemp("planted")
    fit(Linear(), directory / "ill", batches(too_large), precision="bf16-mixed")
    fit(Linear(), directory / "well", batches(), precision="bf16-mixed")
    return directory


@pytest.fixture
def failed_run(planted_runs, tmp_path):
    """A copy of both."""
    return shutil.copytree(planted_runs, tmp_path / "planted")


def test_diagnose_names_the_cause_and_fails_as_asked(command, failed_run):
    code, out, err = command("diagnose", failed_run / "ill")
    assert code == 1
    assert err == ""
    assert out.startswith("critical  step 3")
    for label in ("evidence", "cure", "source"):
        assert label in out
    assert command("diagnose", failed_run / "ill", "--fail-on", "never")[0] == 0
    code, out, _ = command("diagnose", failed_run / "ill", "--json")
    first = json.loads(out)["findings"][0]
    assert (code, first["severity"], first["step"]) == (1, "critical", 3)


def test_diagnose_refuses_an_unknown_severity_and_names_the_near_one(command, failed_run):
    refused(
        command("diagnose", failed_run / "well", "--fail-on", "critcal"),
        "critical, warning, info, never",
        "'critcal'",
    )


def test_diagnose_lists_the_gemms_of_the_audited_step(command, failed_run):
    code, out, err = command("diagnose", failed_run / "well", "--gemms")
    assert (code, err) == (0, "")
    assert "body.0" in out
    assert "forward" in out
    content = json.loads(command("diagnose", failed_run / "well", "--gemms", "--json")[1])
    assert {"module", "m", "n", "k", "padding"} <= set(content["gemms"][0])


def test_compare_says_where_two_runs_part(command, failed_run):
    code, out, err = command("compare", failed_run / "well", failed_run / "well")
    assert (code, err) == (0, "")
    assert "nothing parts by more than its own noise" in out
    code, out, err = command("compare", failed_run / "well", failed_run / "ill")
    assert (code, err) == (0, "")
    assert "parts first" in out
    content = json.loads(command("compare", failed_run / "well", failed_run / "ill", "--json")[1])
    assert content["first"]["step"] == 3


def test_reproduce_runs_the_failed_step_again(command, failed_run):
    script = f"{PLANTED / 'make_planted.py'}:linear"
    code, out, err = command("reproduce", failed_run / "ill", "--script", script)
    assert (code, err) == (0, "")
    assert "loss: bit for bit" in out
    code, out, _ = command("reproduce", failed_run / "ill", "--script", script, "--json")
    assert (code, json.loads(out)["same"]) == (0, True)


def test_reproduce_without_a_capsule_or_function_is_one_line(command, failed_run):
    script = f"{PLANTED / 'make_planted.py'}:liner"
    refused(command("reproduce", failed_run / "well", "--script", script), "no capsule")
    refused(command("reproduce", failed_run / "ill", "--script", script), "liner")


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("capsule.json", b"[]", "no facts"),
        ("capsule.json", b"{}", "lack step"),
        ("capsule.json", b'{"a', "can't be read"),
        ("state.pt", b"garbage", "state.pt is damaged"),
        ("state.pt", b"", "can't be read"),
    ],
)
def test_a_capsule_that_is_damaged_is_one_line(command, failed_run, file, content, text):
    (failed_run / "ill" / "numwatch" / "capsule" / file).write_bytes(content)
    script = f"{PLANTED / 'make_planted.py'}:linear"
    refused(command("reproduce", failed_run / "ill", "--script", script), text)


ORIGIN = {"phase": "forward", "module": "", "tensor": "", "value": "inf", "inputs": []}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("loss_scale", "many"),
        ("loss", "0x1p99999"),
        ("origin", [1]),
        ("origin", {}),
        ("origin", ORIGIN),
        ("origin", {**ORIGIN, "operation": "exp", "inputs": [1]}),
        ("micro_batches", 0),
        ("autocast", "cat"),
        ("default_dtype", "int64"),
        ("exception", 5),
        ("module", 5),
        ("module", {1: torch.ones(1)}),
        ("buffers", 3),
        ("buffers", {"a": 1}),
        ("random", {}),
        ("random", {"cpu": 1, "cuda": {}, "numpy": [1], "python": [1]}),
        ("random", "of cuda"),
        ("scaler", {"scale": 1.0}),
        ("scaler", "of text"),
        ("loss_scale", "nan"),
        ("loss_scale", "-0x1p0"),
        ("autocast", "float8_e4m3fn"),
        ("default_dtype", "float8_e5m2"),
    ],
)
def test_each_part_of_a_capsule_is_checked(command, failed_run, part, value):
    folder = failed_run / "ill" / "numwatch" / "capsule"
    state = torch.load(folder / "state.pt", weights_only=True)
    facts = json.loads((folder / "capsule.json").read_text())
    if value == "of cuda":
        value = {**state["random"], "cuda": {0: 3}}
    if value == "of text":
        value = {**torch.amp.GradScaler("cpu").state_dict(), "scale": "many"}
    if part in ("module", "buffers", "random", "scaler"):
        torch.save({**state, part: value}, folder / "state.pt")
    else:
        (folder / "capsule.json").write_text(json.dumps({**facts, part: value}))
    script = f"{PLANTED / 'make_planted.py'}:linear"
    refused(command("reproduce", failed_run / "ill", "--script", script), part)


@pytest.mark.parametrize("missing", ["micro_batches", "autocast", "default_dtype", "notes"])
def test_a_capsule_that_lacks_a_fact_is_no_difference(command, failed_run, missing):
    path = failed_run / "ill" / "numwatch" / "capsule" / "capsule.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: fact for name, fact in facts.items() if name != missing}))
    script = f"{PLANTED / 'make_planted.py'}:linear"
    refused(command("reproduce", failed_run / "ill", "--script", script), missing)


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "def f():\n    raise SystemExit(0)"])
def test_a_script_that_exits_is_no_success(command, failed_run, text):
    script = failed_run / "leaves.py"
    script.write_text(text)
    refused(command("reproduce", failed_run / "ill", "--script", f"{script}:f"), "SystemExit")


def test_a_malformed_event_costs_only_itself(command, failed_run):
    with (failed_run / "ill" / "numwatch" / "events.jsonl").open("a") as file:
        file.write('{"attempt": [], "step": "x", "kind": {}}\n{"attempt": 0, "step": true}\n')
    for name in ("report", "diagnose"):
        code, out, err = command(name, failed_run / "ill")
        assert code == 2
        assert out
        assert "2 parts can't be read" in err
    assert out.startswith("critical  step 3")
