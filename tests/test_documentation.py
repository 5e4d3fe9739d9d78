"""Every command and every example in README and docs is run: here, or by CI where it says so."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Run by CI itself: it calls `make test` (which calls `make lint`) and `make demo`.
BY_CI = {"make demo", "make test", "make lint"}
# Needs a network or a network of hooks of the developer's own.
NOT_RUN = {"pip install numwatch", "pip install 'numwatch[fp8]'"}


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
EXAMPLES = list(blocks("python"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A directory in which `demo-run` is a short run of the demo."""
    directory = tmp_path_factory.mktemp("documentation")
    command(directory, "numwatch demo --steps 6 --device cpu")
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


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in BY_CI | NOT_RUN])
def test_command_of_the_documentation_runs(line, runs):
    if line.startswith("numwatch demo"):
        line += " --steps 6 --out another"
    if line.startswith("tensorboard"):
        line += " --inspect"  # reads the same events and ends
    if line.startswith("pytest"):
        line += " --collect-only --quiet " + str(ROOT)
    if line.startswith("python "):
        line = line.replace("python ", f"python {ROOT}/")
    assert command(runs, line)


@pytest.mark.parametrize("line", sorted(BY_CI))
def test_command_that_ci_runs_is_a_target(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), EXAMPLES)
def test_python_of_the_documentation_runs(name, code, runs):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=runs, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"
