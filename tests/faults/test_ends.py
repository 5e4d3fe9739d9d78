"""Ends of a process that nobody asked for, and two processes at one record."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_runs
import pytest
from faults_harness import EPOCH

import numwatch
from numwatch.report import summarize

HERE = Path(__file__).parent
PATIENCE = 120
"""Seconds until another process must have written."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks of POSIX")


def started(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(HERE), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_few_runs_killed_at_random_moments():
    """`kill_runs.py --kills 200` is the whole of it."""
    command = [sys.executable, "-W", "ignore", str(HERE / "kill_runs.py"), "--kills", "4"]
    ended = subprocess.run(
        [*command, "--longest", "0.5", "--seed", "3"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("4 runs killed: every record readable")


def test_a_run_that_ends_before_it_is_killed_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(kill_runs, "train", lambda *_: None)
    with pytest.raises(RuntimeError, match="the run ended by itself, with status 1"):
        kill_runs.killed_after(0.0, tmp_path, from_start=False)


ENDLESS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from faults_harness import train
def before(step):
    if step == 5:
        print(step, flush=True)
    time.sleep(0.01)
train(sys.argv[2], before=before, steps=10**9)
"""

LIGHTNING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import kill_runs
from pathlib import Path
kill_runs.train(Path(sys.argv[2]), 1)
"""


def test_sigterm_of_a_plain_loop_costs_what_was_not_flushed(tmp_path):
    program = started(ENDLESS, tmp_path)
    assert program.stdout.readline() == "5\n"
    program.send_signal(signal.SIGTERM)
    program.communicate()
    assert program.returncode == -signal.SIGTERM
    run = numwatch.open_run(tmp_path)
    steps = run.steps()["step"].to_pylist()
    assert steps[:EPOCH] == list(range(EPOCH))
    assert run.problems == []


def test_sigterm_under_lightning_costs_nothing(tmp_path):
    """Lightning makes an exception of it, so that the record is closed."""
    program = started(LIGHTNING, tmp_path)
    told = program.stdout.buffer.read(16)  # two epochs
    program.send_signal(signal.SIGTERM)
    told += program.stdout.buffer.read()
    program.communicate()
    run = numwatch.open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == list(range(int.from_bytes(told[-8:], "little")))
    assert run.problems == []


def test_two_processes_at_once_write_an_attempt_each(tmp_path):
    code = ENDLESS.replace("10**9", "24")
    programs = [started(code, tmp_path) for _ in range(2)]
    for program in programs:
        program.communicate()
        assert program.returncode == 0
    run = numwatch.open_run(tmp_path)
    assert [attempt["attempt"] for attempt in run.attempts] == [0, 1]
    # The later one's steps are shown, as those of a run that was resumed at its start.
    assert run.steps()["step"].to_pylist() == list(range(24))
    assert run.steps()["attempt"].to_pylist() == [1] * 24
    assert {event["attempt"] for event in run.events()} <= {0, 1}
    assert run.problems == []
    assert len(list((run.path / "steps").glob("attempt-000-*"))) == 24 // EPOCH


def test_a_record_is_read_whole_while_it_is_written(tmp_path):
    program = started(ENDLESS, tmp_path)
    try:
        assert program.stdout.readline() == "5\n"
        known = reads = 0
        end = time.monotonic() + PATIENCE
        while reads < 5 or known <= EPOCH:
            assert time.monotonic() < end, f"{known} steps after {reads} reads"
            run = numwatch.open_run(tmp_path)
            steps = run.steps()["step"].to_pylist()
            assert steps == list(range(len(steps)))
            assert len(steps) >= known
            known = len(steps)
            assert set(run.tensors()["step"].to_pylist()) <= set(steps)
            numwatch.diagnose(run)
            summarize(run)
            run.events()
            assert run.problems == []
            reads += 1
    finally:
        program.kill()
        program.communicate()
