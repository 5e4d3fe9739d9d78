"""When kernels are compiled: what a run needs, and that a person is told of it."""

import importlib.util
import io
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from numwatch.compiling import operand_dtypes
from numwatch.notices import Notices
from numwatch.stats.compiled import has_loops, told_of_compiling

pytestmark = pytest.mark.skipif(not has_loops(), reason="numba does not work here")

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def loaded_anew(path):
    spec = importlib.util.spec_from_file_location("loops_of_a_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_told_once_and_only_of_what_no_earlier_process_has_kept(tmp_path):
    source = tmp_path / "loops_of_a_test.py"
    source.write_text(
        "from numwatch.stats.jit import jit\n\n\n"
        "@jit\ndef one(n):\n    return n + 1\n\n\n@jit\ndef two(n):\n    return n + 2\n"
    )
    told = []
    for _ in range(2):
        loops = loaded_anew(source)
        with told_of_compiling(lambda: told.append("compiling")):
            assert (loops.one(1), loops.two(1)) == (2, 3)
        assert told == ["compiling"]


def test_nothing_is_told_of_what_is_compiled_outside(tmp_path):
    source = tmp_path / "loops_of_a_test.py"
    source.write_text("from numwatch.stats.jit import jit\n\n\n@jit\ndef one(n):\n    return n\n")
    told = []
    with told_of_compiling(lambda: told.append("compiling")):
        pass
    loaded_anew(source).one(1)
    assert told == []


@pytest.mark.parametrize(
    ("precision", "weights", "expected"),
    [
        ("32-true", F32, (F32,)),
        ("bf16-mixed", F32, (F32, BF16)),
        ("16-mixed", F32, (F32, F16)),
        ("bf16-true", BF16, (F32, BF16)),
        ("32-true", BF16, (F32, BF16)),
        ("64-true", torch.float64, (F32,)),
        ("transformer-engine", F32, (F32, BF16, F16)),
        ("float32 weights", F32, (F32, BF16, F16)),
    ],
)
def test_block_kernels_are_compiled_for_the_dtypes_that_a_precision_can_bring(
    precision, weights, expected
):
    assert operand_dtypes(nn.Linear(2, 2, dtype=weights), precision) == expected


@pytest.mark.parametrize(("first", "lines"), [(True, 1), (False, 0)])
def test_one_rank_says_once_that_kernels_are_compiled(first, lines):
    out = io.StringIO()
    notices = Notices(lambda *_, **__: None, Console(file=out), first=first)
    notices.compiling()
    notices.compiling()
    assert out.getvalue().count("numwatch: compiles its kernels") == lines


def test_a_terminal_that_is_gone_does_not_look_like_a_fault_of_the_compiler():
    out = io.StringIO()
    console = Console(file=out)
    out.close()
    Notices(lambda *_, **__: None, console, first=True).compiling()


RUN = """
import sys, torch, numwatch
model = torch.nn.Linear(4, 2)
with numwatch.watch(model, dir=sys.argv[1], update_samples=0, block_every_n_steps=0):
    pass
"""


@pytest.mark.slow
def test_the_first_run_in_an_environment_says_what_it_waits_for(tmp_path):
    said = []
    for name in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", RUN, tmp_path / name],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        )
        said.append(done.stdout.count("compiles its kernels"))
    assert said == [1, 0]
