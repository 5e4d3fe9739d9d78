"""`gpu_check.sh` goes on after a part that fails, names what is missing, and sums up."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def run(tmp_path):
    """Runs the script with a stand-in for Python that does what `cases` says."""

    def check(cases):
        python = tmp_path / "python"
        lines = ["#!/bin/sh", 'case "$*" in', *cases, "*device_name*) echo some-gpu;;", "esac"]
        python.write_text("\n".join([*lines, "exit 0", ""]))
        python.chmod(0o755)
        environment = {**os.environ, "PYTHON": str(python), "OUT": str(tmp_path / "out")}
        return subprocess.run(
            ["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False
        )

    return check


def summary(done):
    _, found = done.stdout.split("results in ")
    return [line.strip() for line in found.splitlines()[1:]]


def test_all_parts_run(run, tmp_path):
    done = run(["*find_spec*) exit 0;;"])
    assert done.returncode == 0, done.stderr
    lines = summary(done)
    assert len(lines) == 10
    assert all(line.startswith("passed") for line in lines)
    assert "on some-gpu, " in done.stdout
    assert (tmp_path / "out").is_dir()


def test_all_limits_together_are_under_eight_minutes(run):
    told = summary(run(["*find_spec*) :;;"]))
    limits = [int(line.split(" of ")[1].split()[0].rstrip(")")) for line in told]
    assert sum(limits) < 480


def test_a_part_that_fails_does_not_stop_the_next(run):
    done = run(["*kernel.py*) exit 3;;"])
    assert done.returncode == 1
    lines = summary(done)
    assert [line for line in lines if not line.startswith("passed")] == [lines[1]]
    assert lines[1].startswith("failed   kernel")
    assert lines[1].endswith("exit 3")


@pytest.mark.parametrize(
    ("package", "part"), [("pytest", "GPU tests"), ("torchao", "overhead GPT FP8")]
)
def test_what_is_missing_is_named_and_no_failure(run, package, part):
    done = run([f"*find_spec*{package}*) exit 1;;"])
    assert done.returncode == 0
    skipped = [line for line in summary(done) if line.startswith("skipped")]
    assert skipped == [f"skipped  {part}: {package} is not installed"]


def test_without_a_device_nothing_runs(run):
    done = run(["*device_name*) exit 1;;"])
    assert done.returncode == 2
    assert "==" not in done.stdout
