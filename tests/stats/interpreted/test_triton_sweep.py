"""One tensor through the GPU kernel, interpreted: every count is the reference's."""

import math

import pytest
import torch
import triton.language as tl
from bit_patterns import DTYPES, from_bytes, patterns
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import every
from triton_truth import SOME_DTYPES, assert_agrees, assert_rows_agree, random_bits

import numwatch.stats as nws
from numwatch.stats import reference
from numwatch.stats.dtypes import every_kind
from numwatch.stats.gpu import launch, sweep
from numwatch.stats.gpu.place import FLAT, ROWS, STEPS, place

# numpy says so where a GPU is silent: FP64 squares that overflow, casts of NaN.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
ALL_LANES = launch.LANES
TILE = 16 * launch.EACH  # see conftest


@ALL_DTYPES
@pytest.mark.parametrize("n", [0, 1, TILE - 1, TILE, TILE + 1])
def test_sizes_around_a_tile(dtype, n):
    assert_agrees(launch, random_bits(dtype, n, seed=n))


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
def test_more_tiles_than_programs_from_any_element_on(dtype):
    programs = launch.programs(1 << 40, torch.device("cpu"))
    assert_agrees(launch, random_bits(dtype, (programs + 1) * TILE + 5)[3:])


@ALL_DTYPES
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_any_bit_patterns(dtype, data):
    x = data.draw(patterns(dtype, max_size=40))
    assert_agrees(launch, x)
    assert_agrees(launch, x, amax_only=True)


@ALL_DTYPES
@pytest.mark.parametrize("amax_only", [False, True])
def test_every_kind_of_value(dtype, amax_only):
    assert_agrees(launch, every_kind(dtype), amax_only=amax_only)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize <= 2], ids=str)
@pytest.mark.parametrize("amax_only", [False, True])
def test_every_code(dtype, amax_only):
    width = dtype.itemsize
    # Each third one has every exponent with every mantissa's last bits.
    codes = every(3 if width > 1 else 1, range(1 << (8 * width)))
    x = from_bytes([i.to_bytes(width, "little") for i in codes], dtype)
    assert_agrees(launch, x, amax_only=amax_only)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, -1.75])
def test_constants(dtype, value):
    assert_agrees(launch, torch.full((TILE + 7,), value, dtype=torch.float64).to(dtype))


@ALL_DTYPES
def test_half_zeros(dtype):
    x = torch.randn(TILE).relu().to(dtype)
    assert_agrees(launch, x)


def test_float32_subnormals():
    codes = torch.cat([torch.arange(1, 2000), 2 ** torch.arange(23), 2**23 - torch.arange(9)])
    assert_agrees(launch, torch.cat([codes, codes - 2**31]).to(torch.int32).view(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exponent", [-133, -127, -100, -51, -50, 50, 51, 100, 127])
def test_squares_neither_overflow_nor_underflow(dtype, exponent):
    x = torch.full((1000,), 2.0**exponent, dtype=torch.float64).to(dtype)
    counts, reals = nws.new_rows(1)
    launch.accumulate(x, counts, reals)
    assert reals[0, nws.SUM] == 1000 * 2.0**exponent
    assert reals[0, nws.SUMSQ] == 1000 * 4.0**exponent


def test_runs_of_tiles_end_when_their_binades_do_not_fit():
    parts = [torch.randn(4 * TILE) * 2.0**e for e in (0, 60, -60, 0, 31, 33)]
    assert_agrees(launch, torch.cat(parts))


def test_runs_of_tiles_end_before_counters_are_full(monkeypatch):
    monkeypatch.setattr(sweep, "_RUN", tl.constexpr(2))
    assert_agrees(launch, torch.randn(5 * 4 * TILE).bfloat16())


def test_a_full_counter_of_16_bits_would_take_more_than_a_run():
    assert sweep.RUN * launch.EACH < 1 << 16
    assert ALL_LANES * launch.EACH < 1 << 16  # of one tile over all threads


def strided(dtype):
    x = random_bits(dtype, 24 * 96).view(24, 96)
    return {
        "transposed": (x.T, FLAT),
        "channels last": (x.view(4, 6, 8, 12).to(memory_format=torch.channels_last), FLAT),
        "columns": (x[:, 16:80], ROWS),
        "odd columns": (x[:, 3:80], STEPS),
        "stepped": (x.view(-1)[::5], STEPS),
        "stepped rows": (x[::3], ROWS),
        "stepped columns": (x[:, ::3], STEPS),
        "expanded": (x[0].expand(5, 96), ROWS),
        "expanded inside": (x[:, :1].expand(24, 7), STEPS),
        "three dimensions": (x.view(4, 6, 96)[:3, :3:2, ::3], FLAT),
        "a corner": (x.view(4, 6, 96)[:, :5, :], ROWS),
        "overlapping": (x.as_strided((20, 30), (3, 1)), STEPS),
        "scalar": (x[3, 4], FLAT),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("name", strided(torch.float32))
def test_strides(dtype, name):
    x, walk = strided(dtype)[name]
    assert place(x).walk == walk
    assert_agrees(launch, x)
    assert_agrees(launch, x, amax_only=True)


def test_offsets_beyond_31_bits():
    far = 2**31 + 4096
    storage = torch.empty(far + 4096, dtype=torch.uint8)  # of which only the ends come to be
    x = storage.view(torch.float8_e4m3fn).as_strided((2, 4096), (far, 1))
    x.copy_(random_bits(x.dtype, 8192).view(2, 4096))
    assert place(x).walk == ROWS
    assert_agrees(launch, x)
    assert_agrees(launch, x[:, ::3])


def test_left_out_zeros_and_negatives_and_complex_parts():
    assert_agrees(launch, torch.eye(9).to_sparse())
    assert_agrees(launch, torch.randn(30, dtype=torch.complex64).conj().imag)


def test_calls_add_up_in_one_row():
    rows, expected = nws.new_rows(2), nws.new_rows(2)
    for x in (torch.randn(77), torch.randn(9).half(), torch.empty(0), torch.tensor([math.inf])):
        launch.accumulate(x, *rows, 1)
        reference.accumulate(x, *expected, 1)
        launch.accumulate_amax(x, *rows, 0)
        reference.accumulate_amax(x, *expected, 0)
    assert_rows_agree(rows, expected)
    assert rows[0][:, nws.CALLS].tolist() == [4, 4]


def test_integers_are_refused():
    with pytest.raises(nws.NotWatchedError):
        launch.accumulate(torch.arange(3), *nws.new_rows(1))
