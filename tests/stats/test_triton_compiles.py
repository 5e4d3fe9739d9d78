"""The GPU kernels become PTX for devices that are not here, and as fast code as was meant."""

import os
import re
from importlib.util import find_spec

import pytest
import torch
from thorough import THOROUGH

from numwatch.stats.dtypes import WATCHED_DTYPES

if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a Triton that compiles", allow_module_level=True)

pytestmark = pytest.mark.slow
F32, BF16, E4M3 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
FULL, GATED = 2, 3
FLAT, ROWS, STEPS = range(3)
# Elements a thread has in the tests of more than one dtype or walk; launched are 32.
EACH, EACH_STEP = (32, 32) if THOROUGH else (16, 8)


@pytest.fixture(scope="module")
def build():
    import triton_builders

    return triton_builders


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(90, dtype) for dtype in WATCHED_DTYPES] + [(80, F32), (80, BF16), (80, E4M3)],
    ids=str,
)
def test_a_gated_sweep_compiles(build, capability, dtype):
    made = build.sweep(dtype, GATED, FLAT, capability, each=EACH)
    assert f".target sm_{capability}" in made.asm["ptx"]
    # Subnormal numbers stay what they are.
    assert ".ftz" not in made.asm["ptx"]


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16], ids=str)
def test_whole_tiles_are_loaded_by_16_bytes_and_threads_keep_to_themselves(build, dtype):
    made = build.sweep(dtype, FULL, FLAT, 90)
    vector_loads = re.findall(r"ld\.global\.v4", made.asm["ptx"])
    assert len(vector_loads) >= 32 * dtype.itemsize // 16
    assert "convert_layout" not in made.asm["ttgir"]


@pytest.mark.parametrize("walk", [ROWS, STEPS])
def test_other_walks_compile(build, walk):
    each = EACH_STEP if walk == STEPS else EACH
    made = build.sweep(BF16, FULL, walk, 80, wide=walk == STEPS, each=each)
    assert ("ld.global.v4" in made.asm["ptx"]) == (walk == ROWS)


@pytest.mark.parametrize(("capability", "dtype"), [(80, BF16), (90, torch.float64)], ids=str)
def test_a_group_compiles(build, capability, dtype):
    made = build.group(dtype, FULL, capability, each=EACH)
    assert "ld.global.v" in made.asm["ptx"]


@pytest.mark.parametrize(
    ("capability", "dtype", "turned"), [(80, BF16, False), (90, E4M3, True), (90, F32, False)]
)
def test_blocks_compile(build, capability, dtype, turned):
    made = build.block(dtype, turned, capability)
    assert ".ftz" not in made.asm["ptx"]
