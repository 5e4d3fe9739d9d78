"""Block by block counts against counting block by block in Python."""

import math
import sys
from collections import Counter
from itertools import product

import pytest
import torch
from bit_patterns import DTYPES, as_float64, from_bytes, patterns
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.stats import block_cpu, block_kernel, block_reference, new_block_rows, tensor_stats
from numwatch.stats.block_layout import BLOCK_KINDS

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
COUNTED = ("depths", "tops", "peaks", "amaxes", "elements", "ratios", "zero_blocks")


def binade_of(value):
    return max(min(math.frexp(value)[1] - 1, 127), -127)


def class_of(value):
    """How many of 1, 1.5, 1.75 and 1.875 the mantissa exceeds; what is out of range has none."""
    if value < 2.0**-126:
        return 1
    return 4 if value >= 2.0**128 else sum(2 * math.frexp(value)[0] > m for m in MANTISSAS)


MANTISSAS = (1.0, 1.5, 1.75, 1.875)


def counted(lines, size):
    """What a histogram says of blocks along lines of numbers: the definition."""
    depths, tops, peaks, amaxes = Counter(), Counter(), Counter(), Counter()
    elements, ratios, zero_blocks = Counter(), Counter(), 0
    for line in lines:
        for start in range(0, len(line), size):
            block = [abs(v) for v in line[start : start + size] if v and math.isfinite(v)]
            if not block:
                zero_blocks += 1
                continue
            amax = max(block)
            amaxes[binade_of(amax)] += 1
            peaks[class_of(amax)] += 1
            elements[class_of(amax), binade_of(amax)] += len(block)
            for v in block:
                # Up to and with a power of two.
                own = -127 if v <= 2.0**-126 else min(math.ceil(math.log2(v)) - 1, 127)
                depth = min(binade_of(amax) - own, 41)
                depths[class_of(amax), depth] += 1
                if depth == 0:
                    tops[class_of(amax), class_of(v)] += 1
                ratios["near"] += v > amax / 1.0625 / (1 + 1e-6)
                ratios["edge"] += v <= amax / (24 * 17 / 18) * (1 + 1e-6)
                ratios["deep"] += v <= amax / 25.5 / (1 + 1e-6)
    return depths, tops, peaks, amaxes, elements, ratios, zero_blocks


def said(histogram):
    """The same of a histogram."""
    h = histogram
    return (
        {(k, d): n for k, own in enumerate(h.below) for d, n in enumerate(own) if n},
        {(k, j): n for k, own in enumerate(h.tops) for j, n in enumerate(own, 1) if n},
        {k: n for k, n in enumerate(h.peaks) if n},
        {e: n for e, n in enumerate(h.amaxes, h.amax_first) if n},
        {
            (k, e): n
            for k, own in enumerate(h.elements)
            for e, n in enumerate(own, h.amax_first)
            if n
        },
        {name: getattr(h, name) for name in ("near", "edge", "deep") if getattr(h, name)},
        h.zero_blocks,
    )


def assert_histogram(histogram, lines):
    expected = counted(lines, histogram.size)
    got = said(histogram)
    assert dict(zip(COUNTED, got, strict=True)) == {
        name: {k: n for k, n in want.items() if n} if isinstance(want, Counter) else want
        for name, want in zip(COUNTED, expected, strict=True)
    }
    assert histogram.blocks == expected[3].total() == sum(histogram.peaks)
    assert sum(histogram.elements_by_binade) == histogram.nonzeros
    assert histogram.nonzeros == expected[0].total() == sum(histogram.depths)
    assert all(own[-1:] != (0,) for own in histogram.below)
    assert histogram.amaxes[:1] != (0,)
    assert histogram.amaxes[-1:] != (0,)


def across(lines):
    return [list(column) for column in zip(*lines, strict=True)]


@ALL_DTYPES
@given(data=st.data(), size=st.sampled_from([1, 2, 5, 16, 32, 40]))
@settings(max_examples=25, deadline=None)
def test_any_bit_patterns(dtype, data, size):
    x = data.draw(patterns(dtype))
    x = x[: x.numel() // 3 * 3].view(3, -1)
    blocks = tensor_stats(x, blocks=(size,)).blocks
    lines = as_float64(x).reshape(3, -1).tolist()
    assert_histogram(blocks.of(size), lines)
    assert_histogram(blocks.of(size, "across"), across(lines) if x.numel() else [])


def test_every_mantissa_at_the_edges_of_classes_and_binades():
    mantissas = [m + d for m in (1.0, 1.5, 1.75, 1.875, 2.0) for d in (-(2**-23), 0.0, 2**-23)]
    exponents = (-127, -126, -125, -109, -5, 0, 126)
    values = [m * 2.0**e for m in mantissas for e in exponents]
    rows = [[a, b, -a / 24, a / 25.5, a / 1.0625, 0.0] for a, b in product(values, values)]
    x = torch.tensor(rows, dtype=torch.float32)
    assert_histogram(tensor_stats(x, blocks=(16,)).blocks.of(16), x.double().tolist())


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 16), (5,), (0, 4), (4, 0), (33,), (), (70, 3)])
def test_blocks_run_along_the_last_dimension_and_across_it(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    blocks = tensor_stats(x, blocks=(32, 16)).blocks
    lines = x.reshape(-1, shape[-1] if shape else 1).tolist() if x.numel() else []
    for size in (16, 32):
        assert_histogram(blocks.of(size), lines)
        assert_histogram(blocks.of(size, "across"), across(lines))


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(20.0 * 48).view(20, 48).T,
        torch.arange(3.0 * 40 * 48).view(3, 40, 48)[:, ::2, ::2],
        torch.arange(2.0 * 3 * 8 * 20).view(2, 3, 8, 20).to(memory_format=torch.channels_last),
        torch.arange(20.0)[:, None].expand(20, 48),
        torch.eye(40).to_sparse(),
        torch.tensor([[1 - 2j, -3 + 4j]] * 20).conj().imag,
    ],
    ids=["transposed", "strided", "channels_last", "expanded", "sparse", "negative bit"],
)
def test_tensors_are_read_by_index_not_by_memory(x):
    dense = x.to_dense() if x.layout is not torch.strided else x
    lines = dense.reshape(-1, dense.shape[-1]).tolist()
    blocks = tensor_stats(x, blocks=(16,)).blocks
    assert_histogram(blocks.of(16), lines)
    assert_histogram(blocks.of(16, "across"), across(lines))


def rows_of(count, x):
    rows = new_block_rows(1)[0]
    count(x, rows)
    return rows


def reference(x, rows):
    block_reference.accumulate_blocks(x, rows, BLOCK_KINDS)


@ALL_DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (31, 127), (33, 129), (64, 128), (130, 300), (5, 7, 9)])
def test_both_kernels_count_alike(dtype, shape):
    n = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (n,), dtype=torch.uint8).view(dtype).view(shape)
    for x in (raw, raw.mT):
        assert torch.equal(rows_of(block_kernel.accumulate_blocks, x), rows_of(reference, x))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize <= 2], ids=str)
def test_every_code(dtype):
    width = dtype.itemsize
    codes = torch.randperm(1 << (8 * width)).tolist()
    x = from_bytes([i.to_bytes(width, "little") for i in codes], dtype).view(-1, 64)
    assert torch.equal(rows_of(block_cpu.accumulate_blocks, x), rows_of(reference, x))


def test_subnormals_are_counted_though_the_processor_flushes_them():
    x = torch.randint(0, 1 << 24, (40, 50), dtype=torch.int32).view(torch.float32)
    expected = rows_of(reference, x)
    assert torch.set_flush_denormal(True)
    try:
        assert torch.equal(rows_of(block_kernel.accumulate_blocks, x), expected)
        assert torch.equal(rows_of(reference, x), expected)
    finally:
        torch.set_flush_denormal(False)


def test_threads_and_pieces_count_what_one_does(monkeypatch):
    x = torch.randn(300, 70)
    expected = rows_of(block_kernel.accumulate_blocks, x)
    monkeypatch.setattr(block_reference, "_ELEMENTS_AT_ONCE", 3000)
    assert torch.equal(rows_of(reference, x), expected)
    monkeypatch.setattr(block_cpu, "_PART", 1000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(rows_of(block_cpu.accumulate_blocks, x), expected)
    finally:
        torch.set_num_threads(before)


def test_the_reference_does_not_wait_for_the_device(no_sync):
    x, rows = torch.randn(70, 50), new_block_rows(1)[0]
    with no_sync():
        reference(x, rows)
        reference(x.bfloat16(), rows)


@pytest.fixture
def first_use():
    block_kernel._cpu_sweep.cache_clear()
    yield
    block_kernel._cpu_sweep.cache_clear()


@pytest.mark.usefixtures("first_use")
def test_without_numba_the_reference_steps_in_with_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "numwatch.stats.block_cpu", None)
    monkeypatch.delattr("numwatch.stats.block_cpu")
    x = torch.randn(20, 20)
    with pytest.warns(RuntimeWarning, match="counts blocks slowly") as caught:
        rows = [rows_of(block_kernel.accumulate_blocks, x) for _ in range(2)]
    assert len(caught) == 1
    assert torch.equal(rows[0], rows_of(reference, x))
    assert torch.equal(rows[1], rows[0])


@pytest.mark.usefixtures("first_use")
def test_loops_that_count_wrongly_are_not_used(monkeypatch):
    monkeypatch.setattr(block_cpu, "accumulate_blocks", lambda _x, rows: rows.add_(1))
    x = torch.randn(20, 20)
    with pytest.warns(RuntimeWarning, match="float32: its loops count wrongly"):
        rows = rows_of(block_kernel.accumulate_blocks, x)
    assert torch.equal(rows, rows_of(reference, x))


def test_merging_adds_the_blocks_of_both():
    a, b = torch.randn(32, 32) * 1e-6, torch.randn(16, 32)
    merged = tensor_stats(a, blocks=(16,)) + tensor_stats(b, blocks=(16, 32))
    assert_histogram(merged.blocks.of(16), a.tolist() + b.tolist())
    assert_histogram(merged.blocks.of(16, "across"), across(a.tolist()) + across(b.tolist()))
    assert_histogram(merged.blocks.of(32), b.tolist())
    plain = tensor_stats(a)
    assert plain.blocks is None
    assert (merged + plain).blocks == merged.blocks
    with pytest.raises(ValueError, match="16 last and 32 last don't merge"):
        merged.blocks.of(16).merge(merged.blocks.of(32))


def test_sizes_are_checked():
    with pytest.raises(NumwatchError, match="block sizes are 1 or more"):
        tensor_stats(torch.ones(4), blocks=(0,))
    with pytest.raises(KeyError):
        tensor_stats(torch.ones(4), blocks=(2,)).blocks.of(16)
