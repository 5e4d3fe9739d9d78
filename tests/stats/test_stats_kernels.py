"""Two kernels, one contract: every count equal to the definition, sums to FP64 rounding."""

import ctypes
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from bit_patterns import DTYPES, assert_same, expected_stats, from_bytes, patterns
from hypothesis import given, settings
from hypothesis import strategies as st

import numwatch.stats as nws
from numwatch.stats import (
    TensorStats,
    cpu,
    dtypes,
    exponent_loops,
    kernels,
    loops,
    reference,
)
from numwatch.stats.dtypes import every_kind

KERNELS = pytest.mark.parametrize("kernel", [reference, cpu], ids=["reference", "numba"])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def measured(kernel, x):
    counts, reals = nws.new_rows(1)
    kernel.accumulate(x, counts[0], reals[0])
    return nws.unpack_row(counts[0].numpy(), reals[0].numpy(), str(x.dtype)[6:])


@KERNELS
@ALL_DTYPES
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_bit_patterns(kernel, dtype, data):
    x = data.draw(patterns(dtype))
    assert_same(measured(kernel, x), expected_stats(x))


@KERNELS
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize <= 2], ids=str)
def test_every_code(kernel, dtype):
    width = dtype.itemsize
    x = from_bytes([i.to_bytes(width, "little") for i in range(1 << (8 * width))], dtype)
    assert_same(measured(kernel, x), expected_stats(x))


@KERNELS
@ALL_DTYPES
@pytest.mark.parametrize("n", [0, 1, 7, 8, 2047, 2048, 2049, 8191, 8192, 8193, 12287])
def test_chunk_edges(kernel, dtype, n):
    generator = torch.Generator().manual_seed(n)
    raw = torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    x = raw.view(dtype)
    assert_same(measured(kernel, x), expected_stats(x))


def noise(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(n))


CONTENTS = {
    "noise": noise,
    "relu": lambda n: noise(n).relu(),
    "zeros": torch.zeros,
    "one value": lambda n: torch.full((n,), -3.0),
    "a mask": lambda n: noise(n).where(noise(n + 1)[1:] > 0, -math.inf),
    "one NaN": lambda n: noise(n).index_fill(0, torch.tensor([n // 2]), math.nan),
    "nothing finite": lambda n: torch.full((n,), math.nan),
    "subnormals of FP32": lambda n: noise(n) * 2.0**-130,
    "subnormals of FP16": lambda n: noise(n) * 2.0**-18,
    "all binades": lambda n: torch.exp2(torch.linspace(-149, 127, n)),
}


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_many_elements_of_any_content(dtype):
    # One after the other in one thread: each must leave the workspace as it found it.
    for name, make in [*CONTENTS.items(), *CONTENTS.items()]:
        for n in (8192, 20_001):
            x = make(n).to(dtype)
            ours, theirs = measured(cpu, x), measured(reference, x)
            assert ours.as_dict().keys() == theirs.as_dict().keys(), name
            assert_same(ours, theirs)


@pytest.mark.slow
def test_more_elements_than_the_tables_hold_at_once():
    # Never written, the zeros take no memory.
    n = exponent_loops.BLOCK + 3 * exponent_loops.CHUNK + 1
    x = torch.from_numpy(np.zeros(n, np.int16)).view(torch.bfloat16)
    x[[0, 5, n // 2, -1]] = torch.tensor([1.0, -2.0, math.inf, 3.0], dtype=torch.bfloat16)
    counts, reals = nws.new_rows(1)
    # In one part, whatever the number of threads.
    at = (counts.data_ptr(), reals.data_ptr(), cpu._thread.work[x.dtype])
    loops.sweep_floats(x.data_ptr(), n, *at)
    stats = nws.unpack_row(counts[0].numpy(), reals[0].numpy())
    assert (stats.numel, stats.zeros, stats.posinfs, stats.pow2s) == (n, n - 4, 1, 2)
    assert (stats.amax, stats.amin, stats.sum, stats.sumsq) == (3.0, 1.0, 2.0, 14.0)
    assert (stats.binade_first, stats.binades) == (0, (1, 2))


@ALL_DTYPES
def test_threads_see_what_one_thread_sees(dtype):
    x = torch.randint(0, 256, (3 * cpu._PART * dtype.itemsize,), dtype=torch.uint8).view(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(measured(cpu, x), measured(reference, x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_16m_ones_sum_to_16m(dtype):
    x = torch.ones(1 << 24, dtype=dtype)
    stats = nws.tensor_stats(x)
    assert (stats.sum, stats.sumsq, stats.pow2s) == (1 << 24, 1 << 24, 1 << 24)


@KERNELS
def test_squares_neither_overflow_nor_underflow(kernel):
    for dtype, value in [
        (torch.float16, 60000.0),
        (torch.bfloat16, 2.0**127),
        (torch.float32, 2.0**-149),
        (torch.float32, 2.0**127),
    ]:
        stats = measured(kernel, torch.full((1000,), value, dtype=dtype))
        exact = float(torch.tensor(value, dtype=dtype))
        assert stats.sumsq == pytest.approx(1000 * exact**2, rel=1e-13)
        assert stats.rms == pytest.approx(exact, rel=1e-13)


@KERNELS
def test_nonfinite_values_stay_out_of_sums_and_extremes(kernel):
    x = torch.tensor([math.nan, math.inf, -math.inf, -math.inf, 3.0, -0.0, 0.0, -4.0])
    stats = measured(kernel, x)
    assert (stats.nans, stats.posinfs, stats.neginfs, stats.zeros) == (1, 1, 2, 2)
    assert (stats.amax, stats.amin, stats.sum, stats.sumsq) == (4.0, 3.0, -1.0, 25.0)
    assert stats.binades == (1, 1)
    assert stats.binade_first == 1


@KERNELS
def test_fp16_subnormals_have_their_own_binades(kernel):
    codes = torch.arange(1, 1024, dtype=torch.int16).view(torch.float16)
    stats = measured(kernel, codes)
    assert stats.binade_first == -24
    assert stats.binades == tuple(2**k for k in range(10))
    assert stats.pow2s == 10


@KERNELS
@ALL_DTYPES
def test_flushing_processors_change_nothing(kernel, dtype):
    width = dtype.itemsize
    tiny = from_bytes([i.to_bytes(width, "little") for i in range(1, 100)], dtype)
    expected = expected_stats(tiny)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush")
    try:
        counts, reals = nws.new_rows(1)
        kernel.accumulate(tiny, counts[0], reals[0])
    finally:
        torch.set_flush_denormal(False)
    stats = nws.unpack_row(counts[0].numpy(), reals[0].numpy(), str(dtype)[6:])
    if dtype == torch.float64:
        # Sums of FP64 subnormals are lost: no wider type could hold them.
        assert (stats.binades, stats.amax, stats.amin) == (
            expected.binades,
            expected.amax,
            expected.amin,
        )
    else:
        assert_same(stats, expected)


@KERNELS
@ALL_DTYPES
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_amax_and_nonfinites_alone(kernel, dtype, data):
    assert_amax_only(kernel, data.draw(patterns(dtype)))


@KERNELS
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize <= 2], ids=str)
def test_amax_and_nonfinites_of_every_code(kernel, dtype):
    width = dtype.itemsize
    codes = [i.to_bytes(width, "little") for i in range(1 << (8 * width))]
    assert_amax_only(kernel, from_bytes(codes, dtype))


@ALL_DTYPES
def test_amax_from_threads(dtype):
    x = torch.randint(0, 256, (3 * cpu._AMAX_PART * dtype.itemsize,), dtype=torch.uint8).view(dtype)
    before = torch.get_num_threads()
    rows, reals = nws.new_rows(2)
    try:
        torch.set_num_threads(3)
        cpu.accumulate_amax(x, rows[0], reals[0])
    finally:
        torch.set_num_threads(before)
    reference.accumulate_amax(x, rows[1], reals[1])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(reals[0], reals[1])


def assert_amax_only(kernel, x):
    counts, reals = nws.new_rows(1)
    kernel.accumulate_amax(x, counts[0], reals[0])
    full = expected_stats(x)
    expected = replace(
        TensorStats.empty(),
        numel=x.numel(),
        nans=full.nans,
        posinfs=full.posinfs,
        neginfs=full.neginfs,
        amax=full.amax,
    )
    assert nws.unpack_row(counts[0].numpy(), reals[0].numpy()) == expected
    assert counts[0, nws.CALLS] == 1


@KERNELS
def test_calls_add_up_in_one_row(kernel):
    counts, reals = nws.new_rows(1)
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, math.inf]), torch.empty(0)]
    for part in parts:
        kernel.accumulate(part, counts[0], reals[0])
    assert counts[0, nws.CALLS] == 3
    stats = nws.unpack_row(counts[0].numpy(), reals[0].numpy(), "float32")
    assert_same(stats, expected_stats(torch.cat(parts)))


def test_rows_written_from_many_threads():
    x = torch.randn(100_000)
    expected = nws.tensor_stats(x)
    counts, reals = nws.new_rows(16)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: nws.accumulate(x, counts, reals, i), range(16)))
    for i in range(16):
        stats = nws.unpack_row(counts[i].numpy(), reals[i].numpy(), "float32")
        assert stats == expected


def test_rows_made_in_inference_mode_can_be_written_outside():
    with torch.inference_mode():
        counts, reals = nws.new_rows(1)
        nws.accumulate(torch.ones(3), counts[0], reals[0])
    nws.accumulate(torch.ones(3), counts[0], reals[0])
    reference.accumulate(torch.ones(3), counts[0], reals[0])
    assert reals[0, nws.SUM] == 9.0


@ALL_DTYPES
def test_the_reference_never_waits_for_the_device(no_sync, dtype):
    counts, reals = nws.new_rows(1)
    row, row_reals = counts[0], reals[0]
    x = torch.ones(100).to(dtype)
    with no_sync():
        reference.accumulate(x, row, row_reals)
        reference.accumulate_amax(x, row, row_reals)
    assert row[nws.CALLS] == 2


@KERNELS
def test_autograd_is_left_alone(kernel):
    x = torch.ones(5, requires_grad=True)
    y = x * 2
    version = y._version
    measured(kernel, y)
    y.sum().backward()
    assert y._version == version
    assert x.grad.tolist() == [2.0] * 5


def test_warm_up_takes_every_dtype():
    nws.warm_up()
    assert set(nws.WATCHED_DTYPES) == set(DTYPES)


@pytest.mark.usefixtures("first_use")
def test_without_numba_the_reference_steps_in_with_one_warning(monkeypatch):
    monkeypatch.delattr(nws, "cpu")
    monkeypatch.setitem(sys.modules, "numwatch.stats.cpu", None)
    xs = [torch.ones(3), torch.ones(3), torch.ones(3).half()]
    with pytest.warns(RuntimeWarning, match="numba does not work here") as caught:
        stats = [nws.tensor_stats(x) for x in xs]
    assert len(caught) == 1
    assert stats == [expected_stats(x) for x in xs]


@pytest.fixture
def first_use():
    """No kernel was chosen yet, and none that this test chooses is kept."""
    choices = (kernels._cpu_kernel, kernels._compiled_kernel)
    for choice in choices:
        choice.cache_clear()
    yield
    for choice in choices:
        choice.cache_clear()


def memory_at(address, number, n):
    return np.ctypeslib.as_array((number * n).from_address(address))


def older_columns(loop):
    """A loop from a cache of before a column was added: every count one too far left."""

    def wrong(address, numel, counts, reals, work):
        row, _ = nws.new_rows(1)
        loop(address, numel, row.data_ptr(), reals, work)
        memory_at(counts, ctypes.c_int64, nws.COUNTS)[:] += np.roll(row[0].numpy(), -1)

    return wrong


def halved_amax(loop):
    def wrong(address, numel, counts, reals, work):
        loop(address, numel, counts, reals, work)
        memory_at(reals, ctypes.c_double, nws.REALS)[nws.AMAX] /= 2

    return wrong


def wrong_where_many(loop):
    def wrong(address, numel, counts, reals, work):
        loop(address, min(numel, exponent_loops.FEW), counts, reals, work)

    return wrong


@pytest.mark.parametrize("wrong", [older_columns, halved_amax, wrong_where_many])
@pytest.mark.usefixtures("first_use")
def test_a_kernel_that_counts_wrongly_is_not_used(monkeypatch, wrong):
    x = torch.tensor([1.0, 3.0, -0.0, math.nan])
    for loops_of in (cpu._SWEEPS, cpu._AMAX_LOOPS):
        monkeypatch.setitem(loops_of, torch.float32, wrong(loops_of[torch.float32]))
    with pytest.warns(RuntimeWarning, match="float32: its loops count wrongly") as caught:
        stats = [nws.tensor_stats(x) for _ in range(2)]
    assert len(caught) == 1
    assert stats[0] == stats[1] == expected_stats(x)
    counts, reals = nws.new_rows(2)
    with pytest.warns(RuntimeWarning, match="float32: its loops count wrongly") as caught:
        nws.accumulate_amax(x, counts, reals, 0)
    assert len(caught) == 1
    nws.accumulate_group([x], [1], counts, reals, full=False)
    assert torch.equal(counts[0], counts[1])
    assert reals[:, nws.AMAX].tolist() == [3.0, 3.0]


@ALL_DTYPES
@pytest.mark.parametrize("full", [True, False], ids=["full", "amax"])
@pytest.mark.usefixtures("first_use")
def test_the_right_kernel_passes_its_check(dtype, full):
    assert kernels._cpu_kernel(dtype, full) is cpu


@pytest.mark.usefixtures("first_use")
def test_a_dtype_s_first_use_compiles_no_other(monkeypatch):
    met = []
    sweeps = {d: lambda *at, d=d, f=f: (met.append(d), f(*at)) for d, f in cpu._SWEEPS.items()}
    monkeypatch.setattr(cpu, "_SWEEPS", sweeps)
    nws.tensor_stats(torch.ones(2))
    assert set(met) == {torch.float32}


@ALL_DTYPES
def test_every_kind_of_value_is_among_them(dtype):
    stats = measured(reference, every_kind(dtype))
    assert_same(stats, expected_stats(every_kind(dtype)))
    has_inf = dtypes.LAYOUTS[dtype].has_inf
    assert min(stats.zeros, stats.nans, stats.pow2s) > 0
    assert (stats.posinfs > 0, stats.neginfs > 0) == (has_inf, has_inf)
    assert min(stats.binades[-5 - stats.binade_first : 6 - stats.binade_first]) > 0
    assert stats.amin == dtypes.LAYOUTS[dtype].magnitude(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_sums_of_chunks_with_and_without_specials_add_up(dtype, first):
    n = 6 * exponent_loops.CHUNK + 77
    x = torch.randn(first + n, generator=torch.Generator().manual_seed(0)).to(dtype)[first:]
    for chunk, special in ((1, math.nan), (2, -math.inf), (4, 2.0**-130)):
        x[exponent_loops.CHUNK * chunk + 5] = special
    finite = x[x.isfinite()].double()
    for _ in range(2):  # nothing is left of the last tensor
        counts, reals = nws.new_rows(1)
        nws.accumulate(x, counts, reals)
        assert reals[0, nws.SUM].item() == pytest.approx(math.fsum(finite.tolist()), rel=1e-12)
        squares = math.fsum((finite**2).tolist())
        assert reals[0, nws.SUMSQ].item() == pytest.approx(squares, rel=1e-12)


def test_lanes_lie_within_lines_of_the_cache():
    at = cpu._thread.work[torch.bfloat16] + 4 * exponent_loops._SUMS
    assert at % cpu._LINE == 0
