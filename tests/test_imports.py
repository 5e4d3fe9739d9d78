"""What `import numwatch` brings along: nothing that only some of its users need."""

import subprocess
import sys
import types

import pytest
from command_line import bf16_run

import numwatch
from numwatch import callbacks

HEAVY = ("pytorch_lightning", "lightning", "tensorboard", "torchao", "numba", "triton")
TO_MEASURE = ("torch", *HEAVY)
READING = (
    ("--help",),
    ("formats",),
    ("report", "run"),
    ("report", "run", "--json"),
    ("report", "run", "--loss-scale", "--updates", "--states", "--shadow"),
    ("diagnose", "run", "--fail-on", "never"),
    ("diagnose", "run", "--gemms"),
    ("compare", "run", "run"),
    *(("recommend", "run", "--target", name) for name in ("amp", "fp8", "mxfp8", "nvfp4")),
    ("recommend", "run", "-o", "plan.yaml"),
    ("export", "plan.yaml", "--to", "torchao"),
    ("replay", "run", "--recipe", "delayed:history=4"),
    ("replay", "run", "--recipe", "mx:rule=rceil"),
    ("replay", "run", "--recipe", "grad-scaler"),
)
"""Commands that look at what was recorded."""


def printed(code, **kwargs):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_numwatch_imports_next_to_nothing():
    libraries = (*TO_MEASURE, "numpy", "pyarrow", "rich", "typer", "yaml")
    code = f"import sys, numwatch; print(*(name for name in {libraries} if name in sys.modules))"
    assert printed(code) == []


def test_a_script_that_makes_a_trainer_waits_for_nothing_that_a_fit_needs():
    """Beyond what Lightning imports itself, under both of its names."""
    code = """
import sys, torch, pytorch_lightning, lightning.pytorch
before = set(sys.modules)
from numwatch.callbacks import NumericsMonitor
NumericsMonitor()
new = {name.partition(".")[0] for name in sys.modules.keys() - before}
print(*sorted(new), "numwatch.session" in sys.modules)
"""
    assert printed(code) == ["numwatch", "False"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with a run of a real training in it."""
    directory = tmp_path_factory.mktemp("recorded")
    bf16_run(directory / "run")
    return directory


def test_commands_that_read_a_record_do_without_what_measuring_needs(recorded):
    code = f"""
import contextlib, io, sys
for name in {TO_MEASURE}:
    sys.modules[name] = None  # whoever imports it now fails
from numwatch.cli import main
for words in {READING}:
    sys.argv = ["numwatch", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        assert not end.code, words
print("done")
"""
    assert printed(code, cwd=recorded) == ["done"]


def test_every_public_name_is_there_and_listed():
    for package in (numwatch, callbacks, numwatch.formats, numwatch.stats, numwatch.recipes):
        for name in package.__all__:
            assert not isinstance(getattr(package, name), types.ModuleType), name
            assert name in dir(package)
    assert numwatch.__version__.count(".") == 2


def test_functions_go_before_submodules_of_their_names_and_bring_nothing_heavy():
    """Whichever is imported first; one process, since each takes as long as importing torch."""
    code = f"""
import sys
import numwatch.diagnose, numwatch.recommend, numwatch.emulate, numwatch.watch
import numwatch.stats.tensor_stats
from numwatch import diagnose, emulate, recommend, tensor_stats, watch
from numwatch.stats import tensor_stats as again
for found in (diagnose, emulate, recommend, tensor_stats, watch):
    assert callable(found) and getattr(numwatch, found.__name__) is found, found
assert numwatch.stats.tensor_stats is again is tensor_stats
print(*(name for name in {HEAVY} if name in sys.modules))
"""
    assert printed(code) == []


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'numwatch' has no attribute 'tensor_stat'"):
        numwatch.tensor_stat  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'numwatch'"):
        from numwatch import nothing  # noqa: F401
