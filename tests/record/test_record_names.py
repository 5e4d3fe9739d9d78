"""Files of a record are known by their names."""

import pytest
from record_builders import record, write_steps

from numwatch import open_run
from numwatch.record import RecordError


@pytest.mark.parametrize(
    "name",
    [
        "manifest-00\N{ARABIC-INDIC DIGIT ONE}.json",
        "manifest-0001.json",
        "manifest-000.json",
        "manifest-99999999999999999999.json",
    ],
)
def test_a_manifest_of_a_name_that_numwatch_never_writes_is_none(name, tmp_path):
    write_steps(tmp_path, range(2))
    (tmp_path / name).write_bytes((tmp_path / "manifest.json").read_bytes())
    assert write_steps(tmp_path, range(2, 4)) == 1
    run = open_run(tmp_path)
    assert [attempt["attempt"] for attempt in run.attempts] == [0, 1]
    assert run.problems == []


@pytest.mark.parametrize("name", ["0000-part-00000", "000-part-000000", "000-part-{:020d}"])
def test_a_part_of_a_name_that_numwatch_never_writes_is_none(name, tmp_path):
    write_steps(tmp_path, range(2))
    folder = tmp_path / "steps"
    whole = (folder / "attempt-000-part-00000.parquet").read_bytes()
    (folder / f"attempt-{name.format(7)}.parquet").write_bytes(whole)
    run = open_run(tmp_path)
    assert run.steps().num_rows == 2
    assert run.problems == []


def test_after_the_last_number_of_an_attempt_there_is_no_other(tmp_path):
    write_steps(tmp_path, range(2))
    (tmp_path / "manifest-999999.json").write_text("{}")
    with pytest.raises(RecordError, match="999999 is the last number of an attempt"):
        record(tmp_path)
