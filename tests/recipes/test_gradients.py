"""What is still lost of a tail where the cut lies lower."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.stats import TensorStats, estimate_flushed, tensor_stats
from numwatch.stats.estimate import estimate_lost

N = 1_000_000
FACTORS = [1.0, 2.0, 3.0, 64.0, 2.0**30, 2.0**60]


@pytest.mark.parametrize("exponent", [3, 6, 10])
def test_the_tail_of_t1_beyond_the_lower_cut(exponent):
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(N, generator=generator, dtype=torch.float64) * 4 - 29 + exponent
    stats = tensor_stats(torch.exp2(z).half())
    factors = [2.0**j for j in range(6)]
    for factor, lost in zip(factors, estimate_lost(stats, "fp16", factors), strict=True):
        share = NormalDist(-29 + exponent, 4).cdf(-25 - math.log2(factor))
        assert lost.value / N == pytest.approx(share, abs=0.05)
        assert (lost.low, lost.high) == (0.0, stats.zeros)


def flat(zeros):
    """FP16 values of a density that is flat about 0, as many as their steps are wide."""
    counts = [1000, 2000, 4000, 8000, 16000, 32000, 64000]
    return TensorStats(
        zeros + sum(counts), zeros, 0, 0, 0, 0, 2.0**-18, 2.0**-24, 0.0, 0.0, -24, tuple(counts)
    )


def test_of_a_flat_density_half_is_lost_below_half_the_cut():
    # The lowest binade holds (2^-25, 3 * 2^-25], of which 2^-25 is a half.
    lost = [one.value for one in estimate_lost(flat(10_000), "fp16", [1.0, 2.0, 4.0])]
    assert lost == pytest.approx([500, 250, 125], rel=0.05)


def test_fewer_zeros_than_the_tail_expects_are_spread_as_the_tail_is():
    lost = [one.value for one in estimate_lost(flat(100), "fp16", [1.0, 2.0, 4.0])]
    assert lost == pytest.approx([100, 50, 25], rel=0.02)


@given(
    counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    zeros=st.integers(0, 10**9),
    first=st.integers(-30, 0),
)
@settings(max_examples=100, deadline=None)
def test_less_is_lost_the_lower_the_cut_and_as_much_as_flushed_at_none(counts, zeros, first):
    stats = TensorStats(
        zeros + sum(counts), zeros, 0, 0, 0, 0, 1.0, 1e-9, 0.0, 1.0, first, tuple(counts)
    )
    lost = [one.value for one in estimate_lost(stats, "fp16", FACTORS)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] == 0.0
    share = estimate_flushed(stats, "fp16").value
    assert lost[0] / (lost[0] + stats.nonzeros or 1) == pytest.approx(share, rel=1e-12)


def test_without_zeros_nothing_was_lost():
    lost = estimate_lost(tensor_stats(torch.ones(5).half()), "fp16", [1.0, 2.0])
    assert [one.exact and one.value for one in lost] == [0.0, 0.0]
