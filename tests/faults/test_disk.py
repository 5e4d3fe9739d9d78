"""Full, read-only and vanishing disks: the run goes on, and what was flushed stays readable."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults_harness import EPOCH, STEPS, assert_harmless, assert_same, steps_of, train

import numwatch
from numwatch.record import event_log, keeper


@pytest.fixture(scope="module")
def bare():
    return train()


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("seed", range(6))
def test_a_disk_that_fills_at_any_write_ends_the_watching_alone(seed, bare, tmp_path, monkeypatch):
    dice = random.Random(seed)
    flushed = []

    def sometimes(write):
        return lambda *args: full() if dice.random() < 0.1 else write(*args)

    monkeypatch.setattr(keeper, "write_part", sometimes(keeper.write_part))
    monkeypatch.setattr(keeper, "append_lines", sometimes(keeper.append_lines))
    monkeypatch.setattr(keeper, "rewrite", sometimes(keeper.rewrite))

    def before(step):
        if step and step % EPOCH == 0:
            flushed.append(steps_of(tmp_path)[0])

    found = train(tmp_path, before=before)
    if found.warned:
        assert_harmless(found, bare, "No space left on device")
    assert_same(found, bare)
    steps, problems = steps_of(tmp_path)
    assert problems == []
    assert all(steps[: len(known)] == known for known in flushed)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 192 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "none", str(disk)]
    if os.name != "posix" or shutil.which("mount") is None:
        pytest.skip("no mount here")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_real_disk_that_is_full(bare, small_disk):
    def before(step):
        if step == EPOCH + 1:  # one flush has found room
            with (small_disk / "filler").open("wb") as file, pytest.raises(OSError, match="space"):
                file.write(b"x" * (1 << 20))

    found = train(small_disk, before=before)
    assert_harmless(found, bare, "No space left on device")
    steps, problems = steps_of(small_disk)
    assert steps == list(range(EPOCH))
    assert problems == []


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from faults_harness import train
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
found = train(sys.argv[2])
print(found.error, found.hooks, len(found.warned), "too large" in found.warned[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limits of file sizes here")
def test_a_limit_of_file_size_is_like_a_full_disk(tmp_path):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", LIMITED, here, str(tmp_path), "3000"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "None 0 1 True"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_directory_that_can_t_be_made(bare, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = train(tmp_path / "file")
    assert_harmless(found, bare, "can't write the record in")


def test_a_read_only_directory(bare, tmp_path):
    if os.geteuid():
        directory = tmp_path / "closed"
        directory.mkdir(mode=0o500)
    else:
        directory = Path("/sys/kernel")  # where root itself may not write
    found = train(directory)
    assert_harmless(found, bare, "can't write the record in")


def test_a_directory_deleted_under_the_run(bare, tmp_path):
    def before(step):
        if step == EPOCH + 1:
            shutil.rmtree(tmp_path / "numwatch")

    found = train(tmp_path, before=before)
    assert_harmless(found, bare, "can't write the record in")


def test_a_part_deleted_under_the_run_costs_only_itself(bare, tmp_path):
    def before(step):
        if step == EPOCH + 1:
            for part in (tmp_path / "numwatch").rglob("*.parquet"):
                part.unlink()

    found = train(tmp_path, before=before)
    assert_same(found, bare)
    assert found.warned == []
    assert steps_of(tmp_path) == (list(range(EPOCH, STEPS)), [])


def test_events_that_can_t_be_written_stop_nothing_else(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "append_lines", full)
    assert event_log.append_lines is not full
    found = train(tmp_path)
    assert_harmless(found, bare, "No space left on device")
    assert numwatch.open_run(tmp_path).problems == []
