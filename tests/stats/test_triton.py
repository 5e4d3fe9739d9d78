"""Starts the tests of the GPU kernels that a CPU interprets, and says what they said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))


@pytest.mark.parametrize("tests", INTERPRETED, ids=lambda path: path.stem)
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interpreted(tests):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tests],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_triton_stays_out_until_a_gpu_is_met():
    code = "import sys, numwatch, torch; numwatch.tensor_stats(torch.ones(3)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numwatch.stats.on_gpu" in done.stdout.split()
    assert not {"triton", "numwatch.stats.gpu"} & set(done.stdout.split())
