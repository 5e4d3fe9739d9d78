"""Block by block counts against counting block by block in Python."""

import math
from collections import Counter

import pytest
import torch
from bit_patterns import as_float64, patterns
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.stats import tensor_stats


def counted(lines, size):
    """Depths and amax binades, each a Counter, and the blocks without a finite non-zero element."""
    depths, tops, empty = Counter(), Counter(), 0
    for line in lines:
        for start in range(0, len(line), size):
            exponents = [
                max(min(math.frexp(v)[1] - 1, 127), -127)
                for v in line[start : start + size]
                if v and math.isfinite(v)
            ]
            if not exponents:
                empty += 1
                continue
            tops[max(exponents)] += 1
            depths.update(max(exponents) - e for e in exponents)
    return depths, tops, empty


def assert_histogram(histogram, lines):
    depths, tops, empty = counted(lines, histogram.size)
    assert {d: n for d, n in enumerate(histogram.below) if n} == depths
    assert {e: n for e, n in enumerate(histogram.amaxes, histogram.amax_first) if n} == tops
    assert (histogram.blocks, histogram.zero_blocks) == (tops.total(), empty)
    assert histogram.below[-1:] != (0,)
    assert histogram.amaxes[:1] != (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@given(data=st.data(), size=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_any_bit_patterns(dtype, data, size):
    x = data.draw(patterns(dtype))
    histogram = tensor_stats(x, blocks=(size,)).blocks.of(size)
    assert_histogram(histogram, [as_float64(x).tolist()])


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 16), (5,), (0, 4), (4, 0), (33,)])
def test_blocks_run_along_the_last_dimension(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    blocks = tensor_stats(x, blocks=(32, 16)).blocks
    lines = x.reshape(-1, shape[-1]).tolist() if x.numel() else []
    for size in (16, 32):
        assert_histogram(blocks.of(size), lines)


def test_transposed_tensors_are_read_by_index_not_by_memory():
    x = torch.randn(20, 48, generator=torch.Generator().manual_seed(0)).T
    assert_histogram(tensor_stats(x, blocks=(16,)).blocks.of(16), x.tolist())


def test_merging_adds_the_blocks_of_both():
    a, b = torch.randn(4, 32) * 1e-6, torch.randn(2, 32)
    merged = tensor_stats(a, blocks=(16,)) + tensor_stats(b, blocks=(16, 32))
    assert_histogram(merged.blocks.of(16), a.tolist() + b.tolist())
    assert_histogram(merged.blocks.of(32), b.tolist())
    plain = tensor_stats(a)
    assert plain.blocks is None
    assert (merged + plain).blocks == merged.blocks


def test_sizes_are_checked():
    with pytest.raises(NumwatchError, match="block sizes are 1 or more"):
        tensor_stats(torch.ones(4), blocks=(0,))
    with pytest.raises(KeyError):
        tensor_stats(torch.ones(4), blocks=(2,)).blocks.of(16)
