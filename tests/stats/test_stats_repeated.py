"""Expanded tensors count as their dense copies do, without such a copy being made."""

import math

import pytest
import torch
from bit_patterns import DTYPES, edge_values, from_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.stats import block_pieces, block_reference, new_block_rows, new_rows, reference
from numwatch.stats import kernels as chosen
from numwatch.stats.block_layout import BLOCK_KINDS
from numwatch.stats.layout import AMAX, AMIN, NUMEL, SUM

ACCUMULATE = [chosen.accumulate, chosen.accumulate_amax, reference.accumulate]
ACCUMULATE += [reference.accumulate_amax]


def count_by_reference(x, rows):
    block_reference.accumulate_blocks(x, rows, BLOCK_KINDS)


@st.composite
def expanded(draw, longest=5):
    """Views that repeat some dimensions, skip elements of others, and stand in any order."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(
        st.lists(st.integers(1, longest), min_size=1, max_size=4).filter(
            lambda sizes: math.prod(sizes) <= 20_000
        )
    )
    own = [1 if draw(st.booleans()) else size for size in sizes]
    step = draw(st.sampled_from([1, 2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    raw = torch.randint(256, (50, dtype.itemsize), dtype=torch.uint8, generator=generator)
    edges = from_bytes(edge_values(dtype), torch.uint8).view(-1, dtype.itemsize)
    pool = torch.cat([raw, edges])
    picked = torch.randint(len(pool), (math.prod(own) * step,), generator=generator)
    x = pool[picked].flatten().view(dtype)[::step].view(own).expand(sizes)
    return x.permute(draw(st.permutations(range(x.dim()))))


@pytest.mark.parametrize("accumulate", ACCUMULATE, ids=lambda f: f"{f.__module__}.{f.__name__}")
@given(x=expanded())
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_the_dense_copy(accumulate, x):
    found, expected = new_rows(2), new_rows(2)
    for rows, one in ((found, x), (expected, x.clone(memory_format=torch.contiguous_format))):
        accumulate(one, *rows, 1)
    assert torch.equal(found[0], expected[0])
    extremes = [AMAX, AMIN]
    assert torch.equal(found[1][:, extremes], expected[1][:, extremes])
    size = float(x.double().nan_to_num(0.0, 0.0, 0.0).abs().sum())
    torch.testing.assert_close(
        found[1][:, SUM:], expected[1][:, SUM:], rtol=1e-12, atol=1e-12 * size, equal_nan=True
    )


@pytest.mark.parametrize("count", [chosen.accumulate_blocks, count_by_reference])
@given(x=expanded(longest=40), at_once=st.sampled_from([1, 200, 1 << 22]))
@settings(max_examples=60, deadline=None)
def test_blocks_are_those_of_the_dense_copy(count, x, at_once):
    found, expected = new_block_rows(2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(block_pieces, "_AT_ONCE", at_once)
        count(x, found)
    count_by_reference(x.clone(memory_format=torch.contiguous_format), expected)
    assert torch.equal(found, expected)


ENDLESS = {  # terabytes, were they copied
    "bias": torch.tensor([1.0, -2.0, 0.0, 0.5] * 16).expand(1 << 34, 64),
    "batch": torch.ones(1, 32, 64).expand(1 << 30, 32, 64),
    "ragged batch": torch.ones(1, 3, 64).expand(1 << 34, 3, 64),
    "gradient of a sum": torch.ones(()).expand(1 << 20, 1 << 15, 64),
    "between": torch.ones(5, 1, 64).expand(5, 1 << 34, 64),
}


@pytest.mark.parametrize("accumulate", ACCUMULATE, ids=lambda f: f"{f.__module__}.{f.__name__}")
@pytest.mark.parametrize("name", ENDLESS)
def test_no_copy_is_made(name, accumulate):
    x = ENDLESS[name]
    counts, reals = new_rows(1)
    accumulate(x, counts, reals)
    assert int(counts[0, NUMEL]) == x.numel()
    assert float(reals[0, AMAX]) == (2.0 if name == "bias" else 1.0)
    if accumulate.__name__ == "accumulate" and name == "bias":
        assert reals[0, SUM:].tolist() == [-0.5 * x.numel() / 4, 5.25 * x.numel() / 4]


@pytest.mark.parametrize("count", [chosen.accumulate_blocks, count_by_reference])
@pytest.mark.parametrize("name", ENDLESS)
def test_of_blocks_no_copy_is_made_either(name, count):
    x = ENDLESS[name]
    (rows,) = new_block_rows(1)
    count(x, rows)
    for (size, direction), row in zip(BLOCK_KINDS, rows, strict=True):
        n = x.shape[-1] if direction == "last" else x.numel() // x.shape[-1]
        blocks = -(-n // size) * (x.numel() // n)
        zeros = blocks // 4 if (name, direction) == ("bias", "across") else 0
        assert int(row[block_reference.ZERO_BLOCKS]) == zeros
        peaks = row[block_reference.PEAKS : block_reference.AMAXES]
        assert int(peaks.sum()) == blocks - zeros
