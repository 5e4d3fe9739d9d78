"""What FP16 has flushed already, from what it left."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.stats import TensorStats, estimate_flushed, tensor_stats

N = 1_000_000


def normal():
    # Not the seed of the global generator, which dropout draws from.
    return torch.randn(N, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def estimated(x, structural_zeros=0):
    half = torch.cat([x.half(), torch.zeros(structural_zeros, dtype=torch.half)])
    return estimate_flushed(tensor_stats(half), "fp16")


@pytest.mark.parametrize("structural_zeros", [0, 3 * N])
@pytest.mark.parametrize("exponent", [0, 3, 6, 10, 15])
def test_t1_gradients(exponent, structural_zeros):
    mu, sigma = -29 + exponent, 4
    flushed = estimated(torch.exp2(normal() * sigma + mu), structural_zeros)
    exact = NormalDist().cdf((-25 - mu) / sigma)
    assert flushed.value == pytest.approx(exact, abs=0.04, rel=0.15)
    assert flushed.low == 0.0
    assert exact <= flushed.high + 0.002


@pytest.mark.parametrize("exponent", [-24, -22, -20, -15])
def test_gaussian_gradients_among_structural_zeros(exponent):
    x = normal() * 2.0**exponent
    exact = math.erf(2.0 ** (-25 - exponent) / math.sqrt(2))
    assert estimated(x, 3 * N).value == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_relu_and_dropout_zeros_are_not_called_flushed(spread):
    activations = torch.nn.functional.dropout(torch.relu(normal() * spread), 0.3)
    flushed = estimated(activations)
    assert flushed.value < 1e-5
    assert flushed.high > 0.6


def test_a_tensor_without_zeros_has_flushed_nothing():
    assert estimate_flushed(tensor_stats(torch.ones(5).half()), "fp16").exact


def test_zeros_alone_say_nothing():
    flushed = estimate_flushed(tensor_stats(torch.zeros(5).half()), "fp16")
    assert (flushed.value, flushed.low, flushed.high) == (0.0, 0.0, 1.0)


@given(
    counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    zeros=st.integers(0, 10**9),
    first=st.integers(-30, 0),
)
@settings(max_examples=200, deadline=None)
def test_any_histogram_gives_a_figure_within_its_bounds(counts, zeros, first):
    stats = TensorStats(
        zeros + sum(counts), zeros, 0, 0, 0, 0, 1.0, 1e-9, 0.0, 1.0, first, tuple(counts)
    )
    for fmt in ("fp16", "e5m2", "e4m3", "bf16"):
        flushed = estimate_flushed(stats, fmt)
        assert 0.0 <= flushed.value <= 1.0
