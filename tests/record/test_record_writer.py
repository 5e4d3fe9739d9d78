"""The writer's thread: it loses nothing, keeps order, leaves out what it must and ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_builders import SLOTS, any_snapshots, record, small_rows, snapshot

from numwatch import open_run
from numwatch.record import RecordError, keeper, parts, recorder
from numwatch.record.thinning import ENTRIES, bytes_of, thinned
from numwatch.report import summarize
from numwatch.report.terminal import summary_lines
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats.layout import BINADES
from numwatch.tensor_rows import Rows

TESTS = str(Path(__file__).parent)


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "numwatch-writer"]


@pytest.fixture(autouse=True)
def _no_thread_left():
    assert not writers()
    yield
    gc.collect()
    assert not writers()


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: a process in the background of a shell ignores it."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be full, or stand still."""

    class Disk:
        full = False

        def __init__(self):
            self.runs, self.reached = threading.Event(), threading.Event()
            self.runs.set()

        def write(self, *args, **options):
            self.reached.set()
            self.runs.wait(60)
            if self.full:
                raise OSError(28, "No space left on device")
            return write_table(*args, **options)

    write_table = parts.pq.write_table
    disk = Disk()
    monkeypatch.setattr(parts.pq, "write_table", disk.write)
    yield disk
    disk.runs.set()


def test_a_thread_lives_from_the_first_write_to_the_close(tmp_path):
    before = threading.active_count()
    with record(tmp_path) as one:
        assert threading.active_count() == before
        for step in range(5):
            one.write(snapshot(step))
            one.event("tick", step)
            one.flush()
            assert threading.active_count() == before + 1
    assert threading.active_count() == before
    # What comes after is done here.
    one.event("late", 5)
    one.flush()
    assert threading.active_count() == before
    assert [event["kind"] for event in open_run(tmp_path).events()] == ["tick"] * 5 + ["late"]


def test_nobody_waits_for_a_disk_but_flush(tmp_path, disk):
    disk.runs.clear()
    with record(tmp_path, flush_seconds=0.0) as one:
        one.write(snapshot(0))
        assert disk.reached.wait(60)
        for step in range(1, 100):
            one.write(snapshot(step))
            one.event("tick", step)
        assert not list(tmp_path.rglob("*.parquet"))
        threading.Timer(0.05, disk.runs.set).start()
        one.flush()
        run = open_run(tmp_path)
        assert run.steps()["step"].to_pylist() == list(range(100))
        assert [event["step"] for event in run.events()] == list(range(1, 100))


def test_a_failure_is_told_by_the_next_call_and_a_later_flush_writes_what_was_kept(tmp_path, disk):
    one = record(tmp_path, flush_seconds=0.0)
    disk.full = True
    one.write(snapshot(0))
    assert disk.reached.wait(60)
    text = ""
    step = 1
    while not text:  # the thread may not have come to it yet
        try:
            one.write(snapshot(step))
        except RecordError as error:
            text = str(error)
        step += 1
    assert text == f"can't write the record in {tmp_path}: [Errno 28] No space left on device"
    with pytest.raises(RecordError, match="No space left"):
        one.flush()
    with pytest.raises(RecordError, match="No space left"):
        one.close()
    assert not list(tmp_path.rglob("*.parquet"))
    disk.full = False
    one.flush()
    run = open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == list(range(step))
    assert run.tensors()["step"].to_pylist() == [at for at in range(step) for _ in range(2)]


def test_a_success_heals_an_error_that_nobody_has_heard_of(tmp_path, disk):
    one = record(tmp_path, flush_seconds=0.0)
    disk.full = True
    one.write(snapshot(0))
    assert disk.reached.wait(60)
    disk.full = False
    one.flush()
    one.close()
    assert open_run(tmp_path).steps().num_rows == 1


def test_events_that_failed_come_later_in_their_order(tmp_path, monkeypatch):
    append = keeper.append_lines

    def torn(directory, lines):
        with (directory / "events.jsonl").open("ab") as file:
            file.write(lines[0][: len(lines[0]) // 2])
        raise OSError(28, "No space left on device")

    one = record(tmp_path)
    one.event("tick", 0)
    one.flush()
    monkeypatch.setattr(keeper, "append_lines", torn)
    one._writer.put(keeper.Event(b'{"attempt": 0, "step": 1, "kind": "tick"}\n'))
    with pytest.raises(RecordError, match="No space left"):
        one.flush()
    monkeypatch.setattr(keeper, "append_lines", append)
    one.event("tick", 2)
    one.close()
    run = open_run(tmp_path)
    assert [event["step"] for event in run.events()] == [0, 1, 2]
    assert run.problems == [
        "events.jsonl line 2 can't be read",
        "events.jsonl line 3 can't be read",
    ]


def test_what_the_thread_can_t_pack_is_told_and_ends_nothing(tmp_path):
    one = record(tmp_path)
    bad = small_rows(0)
    one.write(Snapshot(0, StepScalars(loss="no number"), bad))
    with pytest.raises(RecordError, match="can't write the record"):
        one.flush()
    assert len(writers()) == 1
    with pytest.raises(RecordError, match="can't write the record"):
        one.close()
    assert not writers()


def big(step, n=40):
    slots = tuple(f"m{i}:input" for i in range(n))
    return Snapshot(step, StepScalars(loss=float(step)), small_rows(step, slots))


def test_a_slow_disk_costs_rows_and_never_scalars(tmp_path, disk, monkeypatch):
    size = bytes_of(big(0))
    monkeypatch.setattr(recorder, "MAX_WAITING_BYTES", 3 * size)
    disk.runs.clear()
    one = record(tmp_path, flush_seconds=0.0)
    one.write(big(0))
    assert disk.reached.wait(60)  # the thread stands in the first part
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(1, 10):
            one.write(big(step))
            assert one._writer.waiting <= 3 * size
    (warning,) = (str(one.message) for one in told)
    assert warning == (
        "numwatch can't write as fast as the run goes, so measured rows are left out of the record "
        f"in {tmp_path} (first 40 rows of tensors of step 4). Each step's scalars are kept; events "
        "`thinned` tell what is not. A larger every_n_steps or a faster disk helps."
    )
    disk.runs.set()
    one.flush()
    one.write(big(10))
    one.close()
    run = open_run(tmp_path)
    assert run.steps()["loss"].to_pylist() == [float(step) for step in range(11)]
    assert run.tensors()["step"].unique().to_pylist() == [0, 1, 2, 3, 10]
    assert [(e["kind"], e["step"], e["tensors"]) for e in run.events()] == [
        ("thinned", step, 40) for step in range(4, 10)
    ]
    summary = summarize(run)
    assert (summary.steps, summary.full_steps, summary.thinned_steps) == (11, 5, 6)
    told = [line.plain for line in summary_lines(summary, 100)]
    assert "seen: 5 full of 11 steps; rows of 6 more steps left out: a slow disk" in told


def test_a_step_larger_than_the_bound_is_kept_where_nothing_else_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_WAITING_BYTES", 1)
    with record(tmp_path) as one:
        one.write(big(0))
        one.flush()
        one.write(big(1))
    assert open_run(tmp_path).tensors()["step"].unique().to_pylist() == [0, 1]


@settings(max_examples=50, deadline=None)
@given(any_snapshots(), st.floats(0.0, 1.2))
def test_what_is_left_fits_and_what_is_not_is_counted(snapshots, share):
    for whole in snapshots:
        room = int(share * bytes_of(whole))
        left, out = thinned(whole, room)
        assert (left.step, left.scalars) == (whole.step, whole.scalars)
        assert bytes_of(left) <= room
        assert out or left is whole
        names = {"tensors": "rows", "blocks": "blocks", **{name: name for name in ENTRIES}}
        for table, name in names.items():
            before, after = getattr(whole, name) or (), getattr(left, name) or ()
            assert len(after) == len(before) - out.get(table, 0)
        assert all(out.values())


def test_packed_rows_are_small_while_they_wait(tmp_path):
    """At 10,000 slots a step has 22 MB of rows, of which a fifth may stay until the flush."""
    from numwatch.record.pack import tensors_table

    slots = tuple(f"blocks.{i}.fc:input" for i in range(1000))
    rows = small_rows(0, slots)
    rows.counts[:, 100:130] = np.arange(1, 31) * 1000
    packed = tensors_table([Snapshot(0, StepScalars(), rows)], 0)
    assert packed.nbytes < bytes_of(Snapshot(0, StepScalars(), rows)) / 4
    assert isinstance(rows, Rows)


def test_a_step_is_gone_before_its_part_is_written(tmp_path, monkeypatch):
    """Its rows take six times what they do packed, and Parquet's copy comes on top."""
    monkeypatch.setattr(keeper, "PACK_BYTES", 1)
    monkeypatch.setattr(keeper, "MAX_PACKED_BYTES", 1)
    kept: list[weakref.ref[Snapshot]] = []
    alive = []
    write = parts.pq.write_table

    def look(*args, **options):
        alive.append(kept[-1]() is not None)
        write(*args, **options)

    monkeypatch.setattr(parts.pq, "write_table", look)
    with record(tmp_path) as one:
        for step in range(3):
            whole = snapshot(step)
            kept.append(weakref.ref(whole))
            one.write(whole)
            del whole
            one.flush()
    assert len(alive) >= 6
    assert not any(alive)


def test_packing_a_large_step_takes_little_beside_it():
    from numwatch.record.pack import tensors_table

    slots = tuple(f"blocks.{i}.fc:input" for i in range(20_000))
    rows = small_rows(0, slots)
    rows.counts[:, 100:130] = np.arange(1, 31) * 1000
    whole = Snapshot(0, StepScalars(), rows)
    tracemalloc.start()
    packed = tensors_table([whole], 0)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < packed.nbytes
    assert packed["slot"].to_pylist() == list(slots)
    trimmed = [np.trim_zeros(counts[:BINADES]).tolist() for counts in rows.counts]
    assert packed["binades"].to_pylist() == trimmed


def test_a_row_of_amax_alone_has_no_counts_to_hide():
    """Arrow 17 writes no list that is missing and yet holds something."""
    from numwatch.record.pack import tensors_table

    rows = small_rows(0, ("fc:input",))
    rows.counts[:, 100] = 7
    packed = tensors_table([Snapshot(0, StepScalars(), replace(rows, full=False))], 0)
    (binades,) = packed["binades"].chunks
    assert binades.to_pylist() == [None]
    assert len(binades.values) == 0


def test_a_process_that_was_forked_off_writes_nothing_and_does_not_hang(tmp_path, disk):
    disk.runs.clear()
    one = record(tmp_path, flush_seconds=0.0)
    one.write(snapshot(0))
    assert disk.reached.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads beside a fork
        child = os.fork()
    if child == 0:
        try:
            one.write(snapshot(7))
            one.event("child", 7)
            one.describe([])
            one.flush()
            one.close()
            one._writer.abandon()
        finally:
            os._exit(0 if disk.reached.is_set() else 1)
    deadline = time.monotonic() + 30
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    disk.runs.set()
    one.close()
    run = open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == [0]
    assert run.events() == []


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_flush_waits_loses_nothing(tmp_path, disk):
    disk.runs.clear()
    one = record(tmp_path)
    one.write(snapshot(0))

    def interrupt():
        assert disk.reached.wait(60)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    person = threading.Thread(target=interrupt)
    person.start()
    with pytest.raises(KeyboardInterrupt):
        one.flush()
    person.join()
    disk.runs.set()
    one.write(snapshot(1))
    one.close()
    assert open_run(tmp_path).steps()["step"].to_pylist() == [0, 1]


def test_who_forgets_to_close_loses_nothing_and_leaves_no_thread(tmp_path):
    one = record(tmp_path)
    one.write(snapshot(0))
    one.event("tick", 0)
    del one
    gc.collect()
    assert not writers()
    assert open_run(tmp_path).steps().num_rows == 1


EXITS = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from record_builders import record, snapshot
from numwatch.record import parts, writer
if sys.argv[3] == "hangs":
    writer.EXIT_SECONDS = 0.2
    parts.pq.write_table = lambda *_, **__: threading.Event().wait()
recorder = record(Path(sys.argv[1]), flush_seconds=0.0 if sys.argv[3] == "hangs" else 1e9)
for step in range(50):
    recorder.write(snapshot(step))
    recorder.event("tick", step)
if sys.argv[3] == "fails":
    raise SystemExit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "code"), [("ends", 0), ("fails", 3), ("hangs", 0)])
def test_an_interpreter_that_ends_without_a_close(tmp_path, way, code):
    """What can be written is; a disk that stands still keeps nobody waiting."""
    command = [sys.executable, "-c", EXITS, str(tmp_path), TESTS, way]
    done = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    if way != "hangs":
        run = open_run(tmp_path)
        assert run.tensors()["step"].to_pylist() == [step for step in range(50) for _ in range(2)]
        assert [event["step"] for event in run.events()] == list(range(50))


def test_slots_are_those_of_the_last_description(tmp_path):
    with record(tmp_path) as one:
        for count in (1, 2):
            one.describe([SlotInfo(slot, "fc", "input", "Linear") for slot in SLOTS[:count]])
        one.flush()
        assert list(open_run(tmp_path).slots) == list(SLOTS[:2])


def test_thousands_of_slots_are_written_in_little_memory_and_let_go_of(tmp_path):
    slots = [SlotInfo(f"{i}:input", f"{i}", "input", "Linear", (i, 2)) for i in range(5_000)]
    with record(tmp_path) as one:
        one.describe([])
        one.flush()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        one.describe(slots)
        one.flush()
        after, most = (seen - before for seen in tracemalloc.get_traced_memory())
        tracemalloc.stop()
    assert most < 1 << 19  # of them written: 750 KB
    assert after < 1 << 16
    assert list(open_run(tmp_path).slots.values()) == slots
