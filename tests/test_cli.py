import json
import subprocess
import sys
from pathlib import Path

import pytest

import numwatch.demo
from numwatch import cli, open_run
from numwatch.errors import NumwatchError
from numwatch.formats import format_rows
from numwatch.record import Recorder
from numwatch.report import summarize
from numwatch.snapshot import Snapshot, StepScalars


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["numwatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "logs" / "numwatch"
    with Recorder.open(directory, precision="32-true", device="cpu", arguments={}) as recorder:
        for step in range(6):
            recorder.write(Snapshot(step, StepScalars(epoch=step // 3, loss=6.0 - step)))
    return directory


def refused(result, *texts):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("numwatch: ")
    assert err.count("\n") == 1
    for text in texts:
        assert text in err


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
