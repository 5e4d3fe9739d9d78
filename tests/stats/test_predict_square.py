"""What counts of blocks in one row predict of blocks that span several, against real rounding."""

import math
from dataclasses import replace

import pytest
import torch
from bit_patterns import patterns
from block_truth import true_errors, true_shares
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict_blocks import DIMS, ROUGH, RULES, SMOOTH, assert_holds, counted

from numwatch.formats import get_block_format
from numwatch.stats import tensor_stats
from numwatch.stats.predict_blocks import block_errors, block_shares

NVFP4 = replace(get_block_format("nvfp4"), block=(16, 16))
MXFP8 = replace(get_block_format("mxfp8"), block=(32, 32))
EVERY_CASE = pytest.mark.parametrize(
    ("fmt", "rule"), [(NVFP4, None), *((MXFP8, rule) for rule in RULES)], ids=str
)
NOISE = ("gaussian", "2^1N", "2^2N", "2^4N", "2^6N", "sparse")
# Beyond FP32 NVFP4 has no scale for the tensor.
KINDS = {**SMOOTH, **{kind: make for kind, make in ROUGH.items() if kind != "fp64"}}


@EVERY_CASE
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_lies_within_the_bounds(kind, fmt, rule):
    x = KINDS[kind]()
    for direction in DIMS:
        assert_holds(x, fmt, rule, direction)


@EVERY_CASE
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=50, deadline=None)
def test_the_truth_of_any_bit_patterns_lies_within_the_bounds(fmt, rule, data, dtype):
    x = data.draw(patterns(dtype)).float()
    x = x.where(x.isfinite(), 0.0)
    x = x[: x.numel() // 3 * 3].view(3, -1)
    if x.numel():
        for direction in DIMS:
            assert_holds(x, fmt, rule, direction)


@given(exponents=st.lists(st.integers(-30, 0), min_size=48, max_size=48), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_rows_and_blocks_of_all_sizes_some_of_which_would_vanish_alone(exponents, seed):
    x = torch.randn(48, 40, generator=torch.Generator().manual_seed(seed))
    x *= torch.exp2(torch.tensor(exponents, dtype=torch.float32))[:, None]
    for direction in DIMS:
        assert_holds(x, NVFP4, None, direction)


@pytest.mark.parametrize("neighbour", [2.0**-18, 2.0**-21, 2.0**-25])
def test_a_block_that_would_vanish_alone_lives_by_its_neighbours(neighbour):
    x = torch.zeros(32, 16)
    x[0], x[16], x[17] = 1.0, neighbour, 2.0**-20
    (alone, _), (joined, _) = (
        block_shares(*counted(x, fmt, "last"), fmt) for fmt in ("nvfp4", NVFP4)
    )
    truth, _ = true_shares(x, NVFP4, None, -1)
    assert alone.low >= 1 / 3
    assert truth == (0.0 if neighbour == 2.0**-18 else 2 / 3)
    assert joined.low <= truth <= joined.high


@pytest.mark.parametrize("direction", DIMS)
@pytest.mark.parametrize("kind", NOISE)
def test_shares_of_noise_are_close(kind, direction):
    x = KINDS[kind]()
    flushed, saturated = assert_holds(x, NVFP4, None, direction)
    truth = true_shares(x, NVFP4, None, -1)
    assert flushed.value == pytest.approx(truth[0], abs=0.015)
    assert saturated.value == pytest.approx(truth[1], abs=0.03)


def test_errors_of_noise_are_close():
    x = torch.randn(512, 512)
    median, sqnr = block_errors(*counted(x, NVFP4, "last"), NVFP4)
    truth = true_errors(x, NVFP4, None)
    assert median == pytest.approx(truth[0], rel=0.1)
    assert sqnr == pytest.approx(truth[1], abs=1.0)


@EVERY_CASE
def test_without_counts_the_bounds_are_those_of_one_scale(fmt, rule):
    for make in KINDS.values():
        x = make()
        stats = tensor_stats(x)
        truth = true_shares(x, fmt, rule, -1)
        for share, true in zip(block_shares(stats, None, fmt, rule), truth, strict=True):
            assert share.low <= true <= share.high
        assert math.isnan(block_errors(stats, None, fmt, rule)[0]) == (not stats.nonzeros)
