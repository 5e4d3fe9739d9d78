"""Each case of the clinic trains, and what was made to go wrong is what the diagnosis names."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchao")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import clinic  # noqa: E402  # it stands outside of the package

from numwatch.diagnose import diagnose  # noqa: E402

FAILING = [case for case in clinic.CASES if not case.healthy]
HEALTHY = [case for case in clinic.CASES if case.healthy]

pytestmark = pytest.mark.usefixtures("one_thread")


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def causes(case, tmp_path):
    return [
        finding for finding in diagnose(clinic.run(case, 0, tmp_path)) if finding.severity != "info"
    ]


@pytest.mark.slow
@named(FAILING)
def test_first_cause_is_named(case, tmp_path):
    found = causes(case, tmp_path)
    assert found, "nothing was found"
    assert found[0].rule in case.expected, [finding.rule for finding in found]
    assert found[0].cause
    assert found[0].cure


@pytest.mark.slow
@named(HEALTHY)
def test_nothing_is_said_of_a_healthy_run(case, tmp_path):
    assert causes(case, tmp_path) == []


def test_names_are_unique_and_there_are_enough():
    names = [case.name for case in clinic.CASES]
    assert len(set(names)) == len(names)
    assert len(FAILING) >= 16
    assert len(HEALTHY) >= 10


def test_a_case_expects_rules_that_exist():
    from numwatch.diagnose.chain import PHASE_OF

    for case in FAILING:
        assert set(case.expected) <= set(PHASE_OF), case.name


def test_documentation_lists_every_rule_there_is():
    from numwatch.diagnose.chain import PHASE_OF

    named = {row[0].strip("`") for row in documented()}
    assert set(PHASE_OF) <= named


def rows_of(text):
    """Returns the cells of every line of every table."""
    lines = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in cells] for cells in lines]


def documented():
    return rows_of((ROOT / "docs" / "diagnose.md").read_text())


def results():
    file = ROOT / "benchmarks" / "results" / "clinic-cpu.json"
    return json.loads(file.read_text())["results"]


def rules(names):
    return " or ".join(f"`{name}`" if name else "none" for name in dict.fromkeys(names))


def test_table_of_failing_runs_is_that_of_the_result_file():
    expected = [
        [
            f"`{row['case']}`",
            row["precision"],
            row["ill"],
            rules(row["expected"]),
            rules(row["found"]),
            f"{sum(row['right'])} of {len(row['right'])}",
        ]
        for row in results()
        if row["expected"]
    ]
    table = documented()
    start = next(i for i, row in enumerate(table) if row[0] == "failing run") + 2
    assert table[start : start + len(expected)] == expected


def test_table_of_healthy_runs_is_that_of_the_result_file():
    expected = [
        [
            f"`{row['case']}`",
            row["precision"],
            str(len(row["right"])),
            str(sum(map(len, row["causes"]))),
        ]
        for row in results()
        if not row["expected"]
    ]
    table = documented()
    start = next(i for i, row in enumerate(table) if row[0] == "healthy run") + 2
    assert table[start : start + len(expected)] == expected


def test_result_file_is_of_the_cases_there_are():
    kept = [(row["case"], tuple(row["expected"]), row["ill"]) for row in results()]
    assert kept == [(case.name, case.expected, case.ill) for case in clinic.CASES]


def test_result_file_holds_what_was_asked_of_it():
    failing = [right for row in results() if row["expected"] for right in row["right"]]
    healthy = [causes for row in results() if not row["expected"] for causes in row["causes"]]
    assert sum(failing) >= 0.95 * len(failing)
    assert not any(healthy)
