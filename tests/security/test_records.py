"""A stranger's record: nothing in it leads out of it, and its sizes are known before its rows."""

import json
import os
import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from peak_memory import arrow_at_most_mib
from rich.console import Console
from security_harness import run_that_failed

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.cli import main
from numwatch.record import Recorder, RecordError, part_size
from numwatch.record.capsule import write_capsule
from numwatch.record.schema import TABLES
from numwatch.report import print_summary, summarize
from numwatch.snapshot import Snapshot, StepScalars

posix = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_that_failed(tmp_path_factory.mktemp("made"))


@pytest.fixture
def record(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run" / "numwatch"


def part_of(record, table):
    return min((record / table).glob("*.parquet"))


@posix
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("table", ["tensors", "steps"])
def test_a_part_that_leads_elsewhere_is_left_out(kind, table, record, tmp_path):
    part = part_of(record, table)
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(part)
    run = numwatch.open_run(record)
    assert run.rows(table) == 0
    (problem,) = run.problems
    assert ("links are not followed" if kind == "link" else "no plain file") in problem


@posix
def test_a_table_that_is_elsewhere_is_not_read(record, tmp_path):
    (record / "tensors").rename(tmp_path / "elsewhere")
    (record / "tensors").symlink_to(tmp_path / "elsewhere")
    assert numwatch.open_run(record).tensors().num_rows == 0


@posix
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_events_that_lead_elsewhere_are_not_read(kind, record, tmp_path):
    events = record / "events.jsonl"
    events.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(events)
    else:
        events.symlink_to("/dev/zero" if kind == "device" else tmp_path / "elsewhere")
    run = numwatch.open_run(record)
    assert run.events() == []
    (problem,) = run.problems
    assert problem.startswith("events.jsonl can't be read (")


@posix
def test_a_manifest_that_leads_elsewhere_is_not_read(record, tmp_path):
    (record / "manifest.json").rename(tmp_path / "elsewhere")
    (record / "manifest.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="links are not followed"):
        numwatch.open_run(record)


@posix
@pytest.mark.parametrize("name", ["events.jsonl", "steps"])
def test_nothing_is_written_through_a_link(name, record, tmp_path):
    """Who resumes a stranger's run would write to where its links lead."""
    (record / name).rename(tmp_path / "elsewhere")
    (record / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="can't write the record in"):
        Recorder.open(record, precision="32-true", device="cpu", arguments={})
    assert not (record / "manifest-001.json").exists()


@posix
@pytest.mark.parametrize(
    "name",
    [".manifest-001.json.{}.tmp", "steps/.attempt-001-part-00000.parquet.{}.tmp"],
    ids=["manifest", "part"],
)
def test_nothing_is_written_through_a_link_of_a_temporary_name(name, record, tmp_path):
    """Process ids repeat (a container's is 1), so the names can be known beforehand."""
    outside, planted = tmp_path / "outside", record / name.format(os.getpid())
    outside.write_text("kept")
    planted.symlink_to(outside)
    with Recorder.open(record, precision="32-true", device="cpu", arguments={}) as recorder:
        recorder.write(Snapshot(9, StepScalars(loss=1.0)))
    assert outside.read_text() == "kept"
    assert not os.path.lexists(planted)
    assert 9 in numwatch.open_run(record).steps()["step"].to_pylist()


@posix
@pytest.mark.parametrize("found", ["link", "folder of a process that was killed"])
def test_a_capsule_is_written_to_a_folder_of_its_own(found, tmp_path):
    outside, planted = tmp_path / "outside", tmp_path / f".capsule-{os.getpid()}"
    outside.mkdir()
    if found == "link":
        planted.symlink_to(outside)
    else:
        planted.mkdir()
        (planted / "state.pt").symlink_to(outside / "state.pt")
    assert write_capsule(tmp_path, {}, {}, 1e9)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "capsule").iterdir()) == [
        "capsule.json",
        "state.pt",
    ]
    assert not (tmp_path / "capsule").is_symlink()


def test_a_checkpoint_can_t_send_the_record_into_any_folder(tmp_path, record):
    """Only a record is taken up; elsewhere a folder would get a manifest of numwatch's."""
    monitor = NumericsMonitor()
    monitor.load_state_dict({"directory": str(tmp_path)})
    assert monitor._resumed is None
    monitor.load_state_dict({"directory": str(record)})
    assert monitor._resumed == record


@pytest.fixture
def small_limit(monkeypatch):
    """8 MiB, so that tests need not take a GiB themselves."""
    monkeypatch.setattr(part_size, "LARGEST", 8 << 20)


def of_many(record, table, column, values):
    """Puts values in a column's every row; the file stays small, since they are all alike."""
    part = part_of(record, table)
    first = pq.read_table(part).slice(0, 1)
    n = len(values)
    columns = [
        pa.array(values, field.type)
        if field.name == column
        else pa.chunked_array([first[field.name].combine_chunks()]).take(pa.array([0] * n))
        for field in TABLES[table]
    ]
    pq.write_table(pa.table(columns, schema=TABLES[table]), part, compression="zstd")
    assert part.stat().st_size < 1 << 20
    return part


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("steps", "epoch", [0] * 100_000),
        ("tensors", "binades", [[0] * 2_000_000]),
        ("tensors", "slot", ["x" * 100_000] * 100),
        ("steps", "nonfinite_parameters", [["y" * 100_000] * 100]),
        ("steps", "nonfinite_parameters", [["y" * 9_000_000]]),
    ],
    ids=["rows", "list", "texts", "texts in a list", "one text"],
)
def test_parts_that_would_not_fit_are_left_out_unread(table, column, values, record):
    part = of_many(record, table, column, values)
    del values
    with arrow_at_most_mib(8):
        run = numwatch.open_run(record)
        assert list(run.batches(table)) == []
    (problem,) = run.problems
    assert part.name in problem
    assert "would take more than 8 MiB" in problem


def number(value):
    """Returns an integer as a footer has it: zigzag, in groups of seven bits."""
    bits, coded = value << 1, b""
    while bits > 0x7F:
        coded, bits = coded + bytes([bits & 0x7F | 0x80]), bits >> 7
    return coded + bytes([bits])


def footer_of(part):
    """Returns the bytes of a part's footer."""
    whole = part.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    return whole[-8 - length : -8]


def test_columns_that_the_schema_lacks_are_damage(record):
    """Asked for one of them Arrow ends the process."""
    part = part_of(record, "steps")
    pq.write_table(pa.table({"step": [1], "other": [2]}), part, store_schema=False)
    footer, orders = footer_of(part), b"\x19\x2c" + b"\x1c\x00\x00" * 2 + b"\x00"
    assert footer.endswith(orders)  # of the columns, one for each; they may be missing
    footer = footer.removesuffix(orders) + b"\x00"
    one, two = (b"\x15\x04%\x02\x18" + name + b"\x00" for name in (b"\x04step", b"\x05other"))
    for old, new in [
        (b"\x19\x3c", b"\x19\x2c"),
        (b"\x15\x04\x00" + one + two, b"\x15\x02\x00" + one),
    ]:
        assert footer.count(old) == 1
        footer = footer.replace(old, new)
    part.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    (problem,) = numwatch.open_run(record).problems
    assert "2 columns, the schema 1" in problem


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("rows", [1 << 23, 1 << 40])
def test_rows_that_have_no_bytes_are_given_no_room(rows, record):
    """Arrow makes room for as many as the footer counts, where it says that there is no page."""
    part, n = part_of(record, "steps"), 123_457
    pq.write_table(pa.table({"step": [7] * n}), part, compression="none", use_dictionary=False)
    size = pq.read_metadata(part).row_group(0).column(0).total_compressed_size
    footer = footer_of(part).replace(number(n), number(rows)).replace(number(size), number(0))
    part.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with arrow_at_most_mib(8):
        run = numwatch.open_run(record)
    (problem,) = run.problems
    assert "would take more than 8 MiB" in problem


@pytest.mark.usefixtures("small_limit")
def test_long_names_that_fit_are_read(record):
    """The texts are looked at, since 100,000 bytes of them in each row would not fit."""
    names = [f"{i}:" + "x" * 40 for i in range(2500)]
    of_many(record, "tensors", "slot", names)
    run = numwatch.open_run(record)
    assert run.tensors()["slot"].to_pylist() == names
    assert run.problems == []


def test_numwatch_s_own_parts_are_far_below_the_limit(record):
    for path in record.rglob("*.parquet"):
        assert pq.read_table(path).nbytes < part_size.LARGEST // 1000


def test_an_endless_line_of_events_costs_only_itself(record):
    events = record / "events.jsonl"
    known = len(numwatch.open_run(record).events())
    with events.open("ab") as file:
        file.write(b'{"attempt": 0, "step": 1, "kind": "' + b"x" * (3 << 20) + b'"}\n')
        file.write(b'{"attempt": 0, "step": 2, "kind": "skip"}\n')
    run = numwatch.open_run(record)
    assert len(run.events()) == known + 1
    assert run.problems == [f"events.jsonl line {known + 1} can't be read"]


def test_many_bad_lines_are_counted_and_take_no_quadratic_time(record):
    with (record / "events.jsonl").open("ab") as file:
        file.write(b"{\n" * 200_000)
    begun = time.process_time()
    run = numwatch.open_run(record)
    run.events()
    assert time.process_time() - begun < 10
    assert len(run.problems) == 21
    assert run.problems[-1] == "199980 more lines of events.jsonl can't be read"


def test_events_are_read_up_to_a_limit(record, monkeypatch):
    monkeypatch.setattr("numwatch.record.event_log.LARGEST", 1000)
    line = b'{"attempt": 0, "step": 2, "kind": "skip"}\n'
    (record / "events.jsonl").write_bytes(line * 100)
    run = numwatch.open_run(record)
    assert len(run.events()) == 1000 // len(line)
    assert run.problems == [f"events.jsonl line {1000 // len(line) + 1} can't be read"]


def test_a_manifest_without_end_is_refused(record, monkeypatch):
    monkeypatch.setattr("numwatch.record.manifest.LARGEST", 1 << 20)
    (record / "manifest.json").write_text('{"schema": 1, "x": "' + "y" * (1 << 20) + '"}')
    with pytest.raises(RecordError, match="more than 1 MiB"):
        numwatch.open_run(record)


ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_a_terminal_is_given_no_commands(record, capsys):
    """Names of a stranger's may hold what a terminal obeys."""
    manifest = json.loads((record / "manifest.json").read_text())
    manifest["precision"] = f"32{ESCAPE}\nnumwatch: all is well"
    (record / "manifest.json").write_text(json.dumps(manifest))
    event = {"attempt": 0, "step": 2, "kind": "exception", "text": f"E: {ESCAPE}"}
    with (record / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    run = numwatch.open_run(record)
    print_summary(summarize(run), Console(width=120), numwatch.diagnose(run))
    for words in (["report"], ["diagnose"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["numwatch", *words, str(record)])
            with pytest.raises(SystemExit):
                main()
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x07" not in out + err
    assert "32\\x1b]0;owned" in out
    assert "\nnumwatch: all is well" not in out


def test_errors_are_one_printable_line():
    error = numwatch.NumwatchError(f"no slot 'a{ESCAPE}\n\u2028b' in x")
    assert str(error) == "no slot 'a\\x1b]0;owned\\x07\\x1b[2J b' in x"
    assert len(str(numwatch.NumwatchError("x" * 10**6))) < 2100
