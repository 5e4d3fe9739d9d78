"""What `import numwatch` brings along: nothing that only some of its users need."""

import subprocess
import sys

import pytest

HEAVY = ("pytorch_lightning", "lightning", "tensorboard", "torchao", "numba", "triton")


@pytest.mark.parametrize("module", ["numwatch", "numwatch.cli.app"])
def test_heavy_libraries_wait_until_they_are_needed(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
