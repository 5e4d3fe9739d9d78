"""What is damaged costs only itself, and is named."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_builders import record, snapshot, write_steps

from numwatch import open_run
from numwatch.errors import NumwatchError
from numwatch.record import STEPS, RecordError
from numwatch.record.event_log import end_torn_line
from numwatch.record.schema import ADDED_LATER
from numwatch.snapshot import SlotInfo


def message(path):
    with pytest.raises(RecordError) as caught:
        open_run(path)
    text = str(caught.value)
    assert isinstance(caught.value, NumwatchError)
    assert "\n" not in text
    return text


def test_a_part_truncated_at_any_byte_costs_only_itself(tmp_path):
    write_steps(tmp_path, range(3), each_its_part=True)
    part = tmp_path / "tensors" / "attempt-000-part-00001.parquet"
    whole = part.read_bytes()
    stride = max(len(whole) // 150, 1)
    for length in {*range(0, len(whole), stride), *range(12), *range(len(whole) - 12, len(whole))}:
        part.write_bytes(whole[:length])
        run = open_run(tmp_path)
        assert run.tensors()["step"].to_pylist() == [0, 0, 2, 2], length
        assert run.steps().num_rows == 3
        (problem,) = run.problems
        assert "tensors/attempt-000-part-00001.parquet is damaged" in problem.replace("\\", "/")
        assert "\n" not in problem


def test_a_flipped_byte_is_never_taken_for_data(tmp_path):
    write_steps(tmp_path, range(2), each_its_part=True)
    expected = open_run(tmp_path).tensors()
    part = tmp_path / "tensors" / "attempt-000-part-00001.parquet"
    whole = part.read_bytes()
    pages = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    for position in range(4, pages, max(pages // 150, 1)):
        part.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        run = open_run(tmp_path)
        found = run.tensors()
        # A page header holds a few bytes no reader looks at.
        assert found.equals(expected) or (found.equals(expected[:2]) and len(run.problems) == 1)


def test_foreign_files_in_the_folders_are_left_alone(tmp_path):
    write_steps(tmp_path, range(2))
    for name in ("notes.txt", ".attempt-000-part-00009.parquet.1.tmp", "attempt-0.parquet"):
        (tmp_path / "tensors" / name).write_text("not ours")
    run = open_run(tmp_path)
    assert run.tensors().num_rows == 4
    assert run.problems == []


def test_a_part_of_another_table_is_damage(tmp_path):
    write_steps(tmp_path, range(2))
    steps = tmp_path / "steps" / "attempt-000-part-00000.parquet"
    tensors = tmp_path / "tensors" / "attempt-000-part-00000.parquet"
    steps.write_bytes(tensors.read_bytes())
    run = open_run(tmp_path)
    assert run.steps().num_rows == 0
    reason = "column epoch is missing or not int64"
    assert run.problems == [f"{steps.relative_to(tmp_path)} is damaged and left out ({reason})"]


def rewritten(part, change):
    """Writes a part again as `change` makes it."""
    table = change(pq.read_table(part))
    pq.write_table(table, part)


@pytest.mark.parametrize(
    "missing", [["nonfinite_parameters"], ["loss_scales", "skipped_optimizers"]]
)
def test_a_part_of_an_older_numwatch_has_null_where_it_knew_no_column(tmp_path, missing):
    write_steps(tmp_path, range(4), each_its_part=True)
    expected = open_run(tmp_path).steps().to_pylist()
    rewritten(
        tmp_path / "steps" / "attempt-000-part-00001.parquet", lambda old: old.drop_columns(missing)
    )
    run = open_run(tmp_path)
    expected[1].update(dict.fromkeys(missing))
    assert run.steps().to_pylist() == expected
    assert run.steps().schema == STEPS
    assert run.problems == []


@pytest.mark.parametrize("field", list(STEPS), ids=lambda field: field.name)
def test_a_column_may_be_missing_where_it_was_added_later(tmp_path, field):
    write_steps(tmp_path, range(2))
    part = tmp_path / "steps" / "attempt-000-part-00000.parquet"
    rewritten(part, lambda old: old.drop_columns([field.name]))
    run = open_run(tmp_path)
    rows = run.steps().num_rows
    assert (rows, len(run.problems)) == ((2, 0) if field.name in ADDED_LATER["steps"] else (0, 1))


def test_rows_without_a_column_of_their_histogram_are_damage(tmp_path):
    """As nulls they would be read as counts."""
    with record(tmp_path) as recorder:
        recorder.write(snapshot(0))
    (part,) = (tmp_path / "tensors").glob("*.parquet")
    rewritten(part, lambda old: old.drop_columns(["pow2s"]))
    run = open_run(tmp_path)
    assert run.tensors().num_rows == 0
    assert len(run.problems) == 1


def test_a_column_of_another_type_is_damage_even_where_it_may_be_null(tmp_path):
    write_steps(tmp_path, range(2))
    part = tmp_path / "steps" / "attempt-000-part-00000.parquet"
    rewritten(
        part, lambda old: old.drop_columns(["loss"]).append_column("loss", pa.array(["1", "2"]))
    )
    run = open_run(tmp_path)
    assert run.steps().num_rows == 0
    assert "column loss is missing or not double" in run.problems[0]


def test_a_text_that_is_no_utf8_is_damage(tmp_path):
    write_steps(tmp_path, range(2), each_its_part=True)
    path = tmp_path / "tensors" / "attempt-000-part-00001.parquet"
    table = pq.read_table(path)
    slot = table.schema.get_field_index("slot")
    texts = pa.array([b"\xff"] * table.num_rows, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(slot, table.schema.field(slot), texts), path)
    run = open_run(tmp_path)
    assert set(run.tensors()["step"].to_pylist()) == {0}
    (problem,) = run.problems
    assert "is damaged" in problem


def test_a_manifest_truncated_anywhere_is_one_clear_error(tmp_path):
    write_steps(tmp_path, range(1))
    manifest = tmp_path / "manifest.json"
    whole = manifest.read_bytes()
    for length in range(len(whole.rstrip())):
        manifest.write_bytes(whole[:length])
        assert message(tmp_path).startswith(f"{manifest} can't be read as JSON (")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{}", '{"schema": "1"}'])
def test_json_that_is_no_manifest_is_one_clear_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert message(tmp_path) == (
        f"{tmp_path / 'manifest.json'} is not a numwatch manifest: it names no schema version"
    )


def test_a_newer_record_says_so(tmp_path):
    write_steps(tmp_path, range(1))
    write_steps(tmp_path, range(1))
    manifest = tmp_path / "manifest-001.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 2}))
    expected = (
        f"{tmp_path} was written by a newer numwatch (schema 2; this one reads up to 1): "
        "upgrade numwatch to read it"
    )
    assert message(tmp_path) == expected
    with pytest.raises(RecordError) as caught:
        write_steps(tmp_path, range(1))
    assert str(caught.value) == expected
    assert len(list(tmp_path.glob("manifest*"))) == 2


def test_a_damaged_manifest_of_a_resumed_attempt_costs_only_its_description(tmp_path):
    write_steps(tmp_path, range(4))
    write_steps(tmp_path, range(4, 6))
    (tmp_path / "manifest-001.json").write_text("{")
    run = open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert run.precision == "unknown"
    assert len(run.problems) == 1


@pytest.mark.parametrize(
    "slots", [None, 3, {}, [None], [3], [{}], [{"slot": "a:input"}], "typed"], ids=str
)
def test_slots_that_can_t_be_read_cost_only_themselves(tmp_path, slots):
    good = SlotInfo("fc:input", "fc", "input", "Linear", (2,), "float16", "fp16", 0)
    with record(tmp_path) as recorder:
        recorder.describe([good])
        recorder.write(snapshot(0))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    if slots == "typed":
        changes = [
            {"slot": 1},
            {"shape": 2},
            {"shape": [None]},
            {"shape": [-1]},
            {"shape": ["2"]},
            {"format": {}},
            {"order": "x"},
            {"dtype": 1},
        ]
        slots = [{**asdict(good), **change} for change in changes]
    kept = {}
    if isinstance(slots, list):
        slots = [*slots, asdict(good)]
        kept = {good.slot: good}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "slots": slots}))
    run = open_run(tmp_path)
    assert run.slots == kept
    assert run.tensors().num_rows == 2
    assert run.problems == ["attempt 0: its manifest's slots can't all be read"]


def test_a_run_goes_on_after_its_manifest_was_damaged(tmp_path):
    write_steps(tmp_path, range(4))
    (tmp_path / "manifest.json").write_text("")
    assert write_steps(tmp_path, range(4, 6)) == 1
    run = open_run(tmp_path)
    assert run.steps().num_rows == 6
    assert (run.precision, len(run.problems)) == ("16-mixed", 1)


def test_a_torn_event_is_named_and_the_next_stands_alone(tmp_path):
    with record(tmp_path) as recorder:
        recorder.event("skip", 1)
        recorder.event("skip", 2)
    events = tmp_path / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-9])
    with record(tmp_path) as recorder:
        recorder.event("overflow", 3, loss_scale=2.0)
    run = open_run(tmp_path)
    assert run.events() == [
        {"attempt": 0, "step": 1, "kind": "skip"},
        {"attempt": 1, "step": 3, "kind": "overflow", "loss_scale": 2.0},
    ]
    assert run.problems == ["events.jsonl line 2 can't be read"]


@pytest.mark.parametrize(("tail", "ended"), [(b"", b""), (b"\n", b"\n"), (b"{", b"{\n")])
def test_of_long_events_a_resumed_run_reads_only_the_end(tail, ended, tmp_path):
    with record(tmp_path) as recorder:
        recorder.event("skip", 1)
    events = tmp_path / "events.jsonl"
    size = 1 << 40 if tail else 0
    with events.open("wb") as file:
        file.truncate(size)  # a hole: takes no disk
        file.seek(size)
        file.write(tail)
    end_torn_line(tmp_path)
    with events.open("rb") as file:
        file.seek(size)
        assert file.read() == ended


def test_a_full_disk_is_one_error_and_what_waits_can_still_be_written(tmp_path, monkeypatch):
    from numwatch.record import parts

    recorder = record(tmp_path)
    recorder.write(snapshot(0))
    write_table = parts.pq.write_table

    def full_disk(table, where, **options):
        where.write(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.pq, "write_table", full_disk)
    with pytest.raises(RecordError, match=r"can't write the record in .*No space left on device"):
        recorder.flush()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["manifest.json"]
    monkeypatch.setattr(parts.pq, "write_table", write_table)
    recorder.write(snapshot(1))
    recorder.close()
    assert open_run(tmp_path).tensors()["step"].to_pylist() == [0, 0, 1, 1]


def test_a_place_that_can_t_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="can't write the record in"):
        record(tmp_path / "file" / "numwatch")


def test_a_closed_recorder_takes_no_more(tmp_path):
    recorder = record(tmp_path)
    recorder.close()
    recorder.close()
    with pytest.raises(RecordError, match="is closed"):
        recorder.write(snapshot(0))
