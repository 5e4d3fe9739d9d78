"""docs/performance.md says what the result files say, and leaves open what none says."""

import json
import re

import pytest
from monitors import AMAX, DEFAULT, FULL, TENSORS
from performance_page import PAGE, RESULTS, TABLE, TABLES, fill
from performance_tables import OPEN, Results, beside, judged, overhead


def row(name, cost, error=0.001, **more):
    return {"name": name, "cost": cost, "error": error, "by_kind": {}, "pairs": {}, **more}


def report(*rows):
    return {"left_out": None, "results": list(rows)}


def test_the_page_is_what_the_script_makes_of_the_result_files():
    assert fill(PAGE.read_text(), Results(RESULTS)) == PAGE.read_text()


def test_every_table_stands_on_the_page_once():
    assert [name for _, name, _ in TABLE.findall(PAGE.read_text())] == sorted(
        TABLES, key=lambda name: PAGE.read_text().index(f"table: {name} ")
    )


def test_nothing_is_made_up_where_nothing_was_measured(tmp_path):
    for name, make in TABLES.items():
        lines = "\n".join(make(Results(tmp_path)))
        assert OPEN in lines, name
        # What is asked for is no measurement; versions, seconds and shares would be.
        figures = re.sub(r"(CPU|GPU) \d+ %|10,000 slots|update_samples=0|FP32|BF16", "", lines)
        assert not re.search(r"\d", figures), name


def test_the_gpu_column_is_open_until_a_gpu_was_there(tmp_path):
    assert Results(tmp_path).devices == {"cpu": "CPU", "gpu": "GPU"}
    (tmp_path / "overhead-gpt-bf16-compiled-nvidia-h100.json").write_text("{}")
    (tmp_path / "overhead-gpt-bf16-cpu.json").write_text("{}")
    assert Results(tmp_path).devices == {"cpu": "CPU", "nvidia-h100": "nvidia-h100"}


def test_the_running_text_has_no_measured_figure():
    text = TABLE.sub("", PAGE.read_text())
    assert not re.search(r"\d\s?(%|x\b|ms|GiB|MiB)", text)


def test_overhead_is_the_ratio_less_one():
    found = report(
        row(FULL, 1.25, 0.0123), row(AMAX, 0.998, None), {"name": TENSORS, "failed": "no"}
    )
    assert overhead(found, FULL) == "+25.0 ± 1.2 %"
    assert overhead(found, AMAX) == "-0.2 %"
    assert overhead(found, TENSORS) == "fails"
    assert overhead(found, DEFAULT) == OPEN
    assert overhead(None, FULL) == OPEN
    assert overhead({"left_out": "why", "results": []}, FULL) == "left out: why"


def test_what_is_missed_says_so():
    found = report(row(FULL, 1.25))
    assert judged(found, FULL, 0.2).endswith(", missed")
    assert not judged(found, FULL, 0.25).endswith("missed")
    assert judged(None, FULL, 0.2) == OPEN


def test_a_peer_is_told_in_multiples_of_numwatch():
    peer = "DebugUnderflowOverflow"
    found = report(row(TENSORS, 1.1), row(AMAX, 1.0), row(peer, 1.5))
    assert beside(found, peer) == "+50.0 ± 0.1 % (5.0x, ?)"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("overhead-*-cpu.json")), ids=lambda p: p.stem)
def test_a_result_file_says_what_it_was_measured_on(path):
    found = json.loads(path.read_text())
    assert {"device", "date", "threads", "cores", "versions"} <= found["machine"].keys()
