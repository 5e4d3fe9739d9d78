"""Several attempts, several processes, one record."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from record_builders import SLOTS, record, snapshot, write_steps
from thorough import at_most

from numwatch import open_run
from numwatch.record import Recorder, RecordError, keeper
from numwatch.record.thinning import bytes_of

TESTS = str(Path(__file__).parent)
# Says on standard output up to which step it has flushed.
CHILD = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from record_builders import record, snapshot
recorder = record(Path(sys.argv[1]))
for step in range(100000):
    recorder.write(snapshot(step))
    recorder.event("tick", step)
    if step % 3 == 2:
        recorder.flush()
        print(step, flush=True)
        time.sleep(0.01)
"""


def kept_after_kill(directory, seconds):
    """Kills a writing process after so long from its first flush; returns the last step told."""
    command = [sys.executable, "-c", CHILD, str(directory), TESTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        told = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        told += child.stdout.read()
    # The last line may be torn.
    return int(told[: told.rindex("\n")].split()[-1])


def check_kill(directory, seconds):
    last = kept_after_kill(directory, seconds)
    run = open_run(directory)
    steps = run.steps()["step"].to_pylist()
    assert steps == list(range(len(steps)))
    assert len(steps) > last
    seen = run.tensors()["step"].to_pylist()
    assert seen == [step for step in range(len(seen) // 2) for _ in range(2)]
    assert len(seen) // 2 > last
    assert [e["step"] for e in run.events()][: last + 1] == list(range(last + 1))
    assert all("events.jsonl" in problem for problem in run.problems)


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_keeps_all_that_was_flushed(tmp_path, seed):
    rng = random.Random(seed)
    for i in range(5):
        check_kill(tmp_path / str(i), rng.uniform(0.0, 0.1))


@pytest.mark.slow
def test_a_killed_run_keeps_all_that_was_flushed_whenever_it_is(tmp_path):
    rng = random.Random(7)
    for i in range(at_most(8, thorough=20)):
        check_kill(tmp_path / str(i), rng.expovariate(8.0))


def test_a_resumed_run_is_one_record(tmp_path):
    assert write_steps(tmp_path, range(8), each_its_part=True) == 0
    assert write_steps(tmp_path, range(5, 12)) == 1
    run = open_run(tmp_path)
    steps = run.steps()
    assert steps["step"].to_pylist() == list(range(12))
    assert steps["attempt"].to_pylist() == [0] * 5 + [1] * 7
    tensors = run.tensors(slot=SLOTS[0])
    assert tensors["step"].to_pylist() == list(range(12))
    assert tensors["attempt"].to_pylist() == [0] * 5 + [1] * 7
    assert [attempt["attempt"] for attempt in run.attempts] == [0, 1]


def test_a_step_in_the_middle_of_a_part_ends_an_attempt_too(tmp_path):
    write_steps(tmp_path, range(8))
    write_steps(tmp_path, range(5, 6))
    assert open_run(tmp_path).steps()["attempt"].to_pylist() == [0, 0, 0, 0, 0, 1]


def test_a_third_attempt_may_go_back_before_the_second(tmp_path):
    for steps in (range(8), range(6, 10), range(3, 5)):
        write_steps(tmp_path, steps)
    steps = open_run(tmp_path).steps()
    assert steps["step"].to_pylist() == [0, 1, 2, 3, 4]
    assert steps["attempt"].to_pylist() == [0, 0, 0, 2, 2]


def test_an_attempt_that_wrote_nothing_takes_nothing_away(tmp_path):
    write_steps(tmp_path, range(4))
    record(tmp_path).close()
    run = open_run(tmp_path)
    assert run.steps().num_rows == 4
    assert len(run.attempts) == 2


def test_events_are_joined_like_rows(tmp_path):
    for first in (0, 3):
        with record(tmp_path) as recorder:
            for step in range(first, first + 5):
                recorder.write(snapshot(step))
                recorder.event("skip", step)
    assert [(e["attempt"], e["step"]) for e in open_run(tmp_path).events()] == [
        *((0, step) for step in range(3)),
        *((1, step) for step in range(3, 8)),
    ]


def _open_at_once(directory, barrier, attempts):
    barrier.wait()
    attempts.put(write_steps(directory, range(2)))


def test_processes_that_open_a_record_at_once_get_attempts_of_their_own(tmp_path):
    context = multiprocessing.get_context("spawn")
    n = 3
    barrier, attempts = context.Barrier(n), context.Queue()
    processes = [
        context.Process(target=_open_at_once, args=(tmp_path / "numwatch", barrier, attempts))
        for _ in range(n)
    ]
    for process in processes:
        process.start()
    assert sorted(attempts.get(timeout=120) for _ in range(n)) == list(range(n))
    for process in processes:
        process.join()
    assert sorted(path.name for path in (tmp_path / "numwatch").iterdir()) == [
        "manifest-001.json",
        "manifest-002.json",
        "manifest.json",
        "steps",
        "tensors",
    ]


@pytest.mark.parametrize("taken", [1, 5])
def test_an_attempt_is_claimed_where_there_are_no_hard_links(tmp_path, monkeypatch, taken):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert [record(tmp_path).attempt for _ in range(taken)] == list(range(taken))
    assert len(open_run(tmp_path).attempts) == taken


def test_a_record_can_be_read_while_it_is_written(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path), TESTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            before = 0
            for _ in range(15):
                told = int(child.stdout.readline())
                run = open_run(tmp_path)
                steps = run.steps()["step"].to_pylist()
                assert steps == list(range(len(steps)))
                assert len(steps) > max(told, before - 1)
                assert set(run.tensors()["step"].to_pylist()) <= set(steps)
                assert run.problems == []
                before = len(steps)
        finally:
            child.kill()


def test_a_run_shows_the_record_as_it_was_when_opened(tmp_path):
    with record(tmp_path) as recorder:
        recorder.write(snapshot(0))
        recorder.flush()
        run = open_run(tmp_path)
        recorder.write(snapshot(1))
        recorder.flush()
        assert run.steps().num_rows == 1
        assert open_run(tmp_path).steps().num_rows == 2


def eventually(true):
    """Waits for what another thread does."""
    deadline = time.monotonic() + 30.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_flushes_come_by_time_and_by_size(tmp_path, monkeypatch):
    def parts():
        return len(list(tmp_path.glob("tensors/*.parquet")))

    recorder = record(tmp_path, flush_seconds=1e9)
    recorder.write(snapshot(0))
    recorder.event("tick", 0)
    eventually((tmp_path / "events.jsonl").exists)
    assert parts() == 0
    monkeypatch.setattr(keeper, "PACK_BYTES", bytes_of(snapshot(0)) + 1)
    monkeypatch.setattr(keeper, "MAX_PACKED_BYTES", 1)
    recorder.write(snapshot(1))
    eventually(lambda: parts() == 1)
    recorder.write(snapshot(2))
    recorder.close()
    assert parts() == 2
    assert open_run(tmp_path).tensors()["step"].to_pylist() == [0, 0, 1, 1, 2, 2]
    with record(tmp_path, flush_seconds=0.05) as eager:
        eager.write(snapshot(3))
        eventually(lambda: parts() == 3)  # though nothing more is written


def test_a_flush_of_nothing_writes_nothing(tmp_path):
    recorder = record(tmp_path)
    recorder.flush()
    recorder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    run = open_run(tmp_path)
    assert (run.steps().num_rows, run.tensors().num_rows, run.slots) == (0, 0, {})


class TestFinding:
    def test_by_the_record_its_log_directory_or_any_above(self, tmp_path):
        record_dir = tmp_path / "demo-run" / "logs" / "version_0" / "numwatch"
        write_steps(record_dir, range(1))
        for path in (record_dir, *record_dir.parents[:3]):
            assert open_run(path).path == record_dir
            assert open_run(str(path)).path == record_dir

    def test_several_are_named(self, tmp_path):
        for version in ("version_0", "version_1"):
            write_steps(tmp_path / version / "numwatch", range(1))
        with pytest.raises(RecordError) as caught:
            open_run(tmp_path)
        names = ", ".join(str(tmp_path / f"version_{i}" / "numwatch") for i in range(2))
        assert str(caught.value) == f"2 records below {tmp_path}: name one of {names}"

    def test_nowhere(self, tmp_path):
        (tmp_path / "version_0").mkdir()
        with pytest.raises(RecordError) as caught:
            open_run(tmp_path / "verson_0")
        assert str(caught.value) == (
            f"no such directory: {tmp_path / 'verson_0'}; did you mean 'version_0'?"
        )
        with pytest.raises(RecordError, match="no record in or below"):
            open_run(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(RecordError, match="is not a directory"):
            open_run(tmp_path / "file")

    @pytest.mark.parametrize(
        ("wanted", "text"),
        [
            ({"slot": "fc:inputs"}, "no slot 'fc:inputs' in {}; did you mean 'fc:input'?"),
            ({"role": "grad"}, "no role 'grad' in {}"),
            ({"module": "cf"}, "no module 'cf' in {}; did you mean 'fc'?"),
        ],
    )
    def test_a_name_the_run_does_not_have(self, tmp_path, wanted, text):
        from numwatch.snapshot import SlotInfo

        with Recorder.open(tmp_path, precision="32-true", device="cpu", arguments={}) as recorder:
            recorder.describe([SlotInfo("fc:input", "fc", "input", "Linear")])
        with pytest.raises(RecordError) as caught:
            open_run(tmp_path).tensors(**wanted)
        assert str(caught.value).startswith(text.format(tmp_path))
