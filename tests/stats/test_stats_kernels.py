"""Two kernels, one contract: every count equal to the definition, sums to FP64 rounding."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bit_patterns import DTYPES, assert_same, expected_stats, from_bytes, patterns
from hypothesis import given, settings
from hypothesis import strategies as st

import numwatch.stats as nws
from numwatch.stats import cpu, kernels, reference

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
@pytest.mark.parametrize("n", [0, 1, 7, 8, 2047, 2048, 2049, 6151])
def test_chunk_edges(kernel, dtype, n):
    generator = torch.Generator().manual_seed(n)
    raw = torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    x = raw.view(dtype)
    assert_same(measured(kernel, x), expected_stats(x))


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
def test_amax_alone(kernel, dtype, data):
    x = data.draw(patterns(dtype))
    counts, reals = nws.new_rows(1)
    kernel.accumulate_amax(x, counts[0], reals[0])
    stats = nws.unpack_row(counts[0].numpy(), reals[0].numpy())
    assert (stats.numel, stats.amax) == (x.numel(), expected_stats(x).amax)
    assert counts[0, nws.CALLS] == 1
    assert counts.sum() == x.numel() + 1
    assert reals[0, nws.AMIN :].tolist() == [math.inf, 0.0, 0.0]


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
        list(pool.map(lambda i: nws.accumulate(x, counts[i], reals[i]), range(16)))
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


def test_without_numba_the_reference_steps_in_with_one_warning(monkeypatch):
    kernels._cpu_kernel.cache_clear()
    monkeypatch.delattr(nws, "cpu")
    monkeypatch.setitem(sys.modules, "numwatch.stats.cpu", None)
    try:
        with pytest.warns(RuntimeWarning, match="numba does not work here") as caught:
            stats = [nws.tensor_stats(torch.ones(3)) for _ in range(2)]
        assert len(caught) == 1
        assert stats[0] == stats[1] == expected_stats(torch.ones(3))
    finally:
        kernels._cpu_kernel.cache_clear()
