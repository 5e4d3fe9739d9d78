"""Every command and every example in README and docs is run: here, or by CI where it says so."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from numwatch import cli

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Run by CI itself; `make test` calls `make lint`.
BY_CI = {
    f"make {what}" for what in ("demo", "test", "lint", "docs", "oldest", "newest", "deepspeed")
}
# `make test` itself does it, tests/distribution too.
NOT_RUN = {"pip install ."}


def blocks(language):
    for path in TEXTS:
        for found in re.finditer(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL):
            yield path.name, found[1]


COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for _, block in blocks("sh")
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    }
)
# Those of one page run in one process: tests/trainers/test_trainers_page.py.
EXAMPLES = [(name, code) for name, code in blocks("python") if name != "trainers.md"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A directory in which `demo-run` is a short run of the demo."""
    directory = tmp_path_factory.mktemp("documentation")
    command(directory, "numwatch demo --steps 6 --device cpu")
    command(directory, "numwatch demo --steps 6 --device cpu --precision bf16-mixed --out bf16-run")
    command(directory, "numwatch recommend bf16-run --target fp8 -o plan.yaml")
    return directory


def command(directory, line):
    words = shlex.split(line)
    program = Path(sys.executable).with_name(words[0])
    environment = {**os.environ, "COLUMNS": "100", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [program, *words[1:]],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_placeholder_is_left():
    for path in TEXTS:
        assert not re.search(r"\b(PICTURE|COSTS|TODO|TBD)\b", path.read_text()), path.name


def test_there_is_something_to_run():
    assert COMMANDS
    assert EXAMPLES


def shortened(line):
    """A command of the documentation as it is run here: the same, in less time."""
    if line.startswith("numwatch demo"):
        line += " --steps 6 --out another"
    if line.startswith("numwatch prove"):
        line += " --steps 6 --seeds 1 --tolerance 10"
    if line.startswith("tensorboard"):
        line += " --inspect"  # reads the same events and ends
    if line.startswith("pytest"):
        line += " --collect-only --quiet " + str(ROOT)
    if line.startswith("torchrun"):
        line = line.replace(" examples/", f" {ROOT}/examples/")
    if line.startswith("python "):
        line = line.replace("python ", f"python {ROOT}/")
    return line


# Those of numwatch and all code run in this process, since most of the time goes into imports; that
# `numwatch` is a program of its own is seen where the runs are made.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_all_commands_and_code_of_the_documentation_run(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "100")
    for line in COMMANDS:
        if line in BY_CI | NOT_RUN:
            continue
        if not line.startswith("numwatch "):
            assert command(runs, shortened(line)), line
            continue
        monkeypatch.setattr(sys, "argv", shlex.split(shortened(line)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert (ended.value.code or 0) == 0, f"{line}: {told.err}"
        assert told.out, line
    for name, code in EXAMPLES:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("line", sorted(BY_CI))
def test_command_that_ci_runs_is_a_target(line):
    target = line.split()[1]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^(?:\w+ )*{target}(?: \w+)*:", makefile, re.MULTILINE)


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def rows_of(text):
    """Returns the cells of every line of every table."""
    lines = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in cells] for cells in lines]


def test_figures_beside_the_tables_are_those_of_the_result_files():
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"how it did on {len(results('clinic-cpu')['results'])} runs" in readme
    text = " ".join((ROOT / "docs" / "diagnose.md").read_text().split())
    large = results("analysis-cpu")
    (command,) = (one for one in large["commands"] if one["name"] == "diagnose")
    assert (large["steps"], large["slots"], command["rows"]) == (10_000, 1_000, 10_000_000)
    assert f"took {command['seconds']:.1f} s and {command['peak_mb']} MB on two cores" in text
    assert command["seconds"] < command["limit_seconds"]
    assert command["peak_mb"] < command["limit_mb"]


def test_costs_in_the_readme_are_those_of_the_result_files():
    measured = [
        {row["name"]: f"{100 * row['cost'] - 100:+.1f} %" for row in found["results"]}
        for found in (results(f"overhead-gpt-{kind}-cpu") for kind in ("fp32", "bf16"))
    ]
    table = rows_of((ROOT / "README.md").read_text())
    start = table.index(["", "FP32", "BF16 autocast"]) + 2
    names = [name for name in measured[0] if name != "bare against bare"]
    told = table[start : start + len(names)]
    assert [row[1:] for row in told] == [[kind[name] for kind in measured] for name in names]


def test_figures_of_the_twins_are_those_of_the_result_file():
    expected = []
    for row in results("twins-cpu")["results"]:
        low, twin = row["bf16-true"], row["bf16-mixed"]
        kept = (low["start"] - low["end"]) / (twin["start"] - twin["end"])
        expected.append(
            [
                f"{row['lr']:.0e}".replace("e-0", "e-"),
                f"{100 * low['swallowed']:.1f} %",
                f"{low['edq_normalised']:.2f}",
                f"{100 * twin['deferred']:.1f} %",
                f"{twin['start']:.2f} → {twin['end']:.3f}",
                f"{low['start']:.2f} → {low['end']:.3f}",
                f"{100 * kept:.0f} %",
            ]
        )
    table = rows_of((ROOT / "docs" / "optimizer.md").read_text())
    assert [row for row in table if row[0].startswith("1e-")] == expected


def test_figures_of_proofs_predictions_and_emulation_are_those_of_the_result_files():
    text = (ROOT / "docs" / "recommend.md").read_text()
    table = rows_of(text)
    proofs = results("proofs-cpu")["rows"]
    told = [row for row in table if row[-1] in ("holds", "fails", "undecided")]
    assert [row[1:] for row in told] == [
        [
            f"{row['loss']:.4f} ± {row['deviation']:.2g}",
            f"{100 * row['rise']:+.2f} % ± {100 * row['error']:.2g} %",
            f"{100 * row['allowed']:g} %",
            row["verdict"],
        ]
        for row in proofs
    ]
    assert [row["verdict"] for row in proofs] == ["holds"] * 4 + ["fails"]
    costs = [[row["recipe"], f"{row['cost']:.2f}"] for row in results("emulate-cpu")["rows"]]
    assert [row for row in table if row in costs] == costs
    predictions = {
        f"`{row['format and recipe']}`": row for row in results("predictions-cpu")["rows"]
    }
    shown = [row for row in table if row[0] in predictions]
    assert len(shown) == 8
    for name, cases, exact, flushed, saturated in shown:
        row = predictions[name]
        assert [int(cases), int(exact)] == [row["cases"], row["exact"]]
        assert flushed == f"{100 * row['flushed']:.2f} points"
        assert saturated == f"{100 * row['saturated']:.2f} points"
    assert sum(row["wrong"] for row in predictions.values()) == 0
    assert "of all 0 lay outside of their bounds" in " ".join(text.split())


def test_figures_of_shadow_steps_are_those_of_the_result_file():
    found = results("shadow-cpu")
    text = (ROOT / "docs" / "optimizer.md").read_text()
    kinds = {(row["run"], row["scale"]): row for row in found["flushed"]}
    percent = "{:.2f} %".format
    for scale in (1, 8, 1024, 32768):
        gpt, theory = kinds["GPT", scale], kinds["lognormal", scale]
        (row,) = (cells for cells in rows_of(text) if cells[0] == str(scale))
        points = f"{100 * gpt['worst_difference']:.1f}"
        assert row == [
            str(scale),
            *(percent(100 * gpt[kind]) for kind in ("measured", "estimated")),
            f"{points} point{'' if points == '1.0' else 's'}",
            *(percent(100 * theory[kind]) for kind in ("theory", "measured", "estimated")),
        ]
    cost = found["cost"]["results"][0]["steps_a_shadow_takes"]
    assert f"({cost:.2f} measured" in text
