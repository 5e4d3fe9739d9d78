"""Rounding errors predicted from the histogram against those of the rounded tensor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.formats import get_format, round_to_format
from numwatch.stats import TensorStats, tensor_stats


def lognormal(sigma, n=100_000):
    """Evenly spaced quantiles instead of a sample, whose amax would be a matter of luck."""
    return torch.exp2(torch.special.ndtri((torch.arange(n).double() + 0.5) / n) * sigma - 12)


def really(x, fmt, scale):
    error = (round_to_format(x, fmt, scale=scale).double() - x.double()).abs()
    signal = x.double().square().sum()
    ratio = (error / x.abs()).median().item()
    return ratio, (10 * torch.log10(signal / error.square().sum())).item()


def amax_scale(stats, fmt):
    return get_format(fmt).max / stats.amax


@pytest.mark.parametrize(
    ("fmt", "flushed", "median"), [("e4m3", 0.395, 0.219), ("e5m2", 1e-4, 0.043)]
)
def test_t5_lognormal_gradients(fmt, flushed, median):
    x = lognormal(4)
    stats = tensor_stats(x)
    scale = amax_scale(stats, fmt)
    ratio, noise = really(x, fmt, scale)
    assert stats.median_relative_error(fmt, scale) == pytest.approx(ratio, rel=0.05)
    # A handful of elements carries nearly all the energy: their rounding is a matter of luck.
    assert stats.sqnr(fmt, scale) == pytest.approx(noise, abs=2.5)
    assert stats.flushed(fmt, scale).value == pytest.approx(flushed, abs=0.02)
    # Theirs was a sample, and its amax sets the scale.
    assert ratio == pytest.approx(median, rel=0.1)


def test_t5_the_choice_by_each_figure():
    for sigma in (4, 6):
        stats = tensor_stats(lognormal(sigma))
        e4m3, e5m2 = ((f, amax_scale(stats, f)) for f in ("e4m3", "e5m2"))
        assert stats.sqnr(*e4m3) > stats.sqnr(*e5m2)
        assert stats.median_relative_error(*e4m3) > stats.median_relative_error(*e5m2)
        assert stats.flushed(*e4m3).value > stats.flushed(*e5m2).value


@pytest.mark.parametrize(
    ("fmt", "decibels"),
    [("fp16", 73.7), ("bf16", 55.6), ("int8", 39.1), ("e4m3", 31.5), ("e5m2", 25.6)],
)
def test_reference_sqnr_of_a_normal_tensor(fmt, decibels):
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    stats = tensor_stats(x)
    scale = 1.0 if fmt in ("fp16", "bf16") else amax_scale(stats, fmt)
    ratio, noise = really(x, fmt, scale)
    assert stats.sqnr(fmt, scale) == pytest.approx(noise, abs=0.3)
    assert stats.sqnr(fmt, scale) == pytest.approx(decibels, abs=0.6)
    assert stats.median_relative_error(fmt, scale) == pytest.approx(ratio, rel=0.05)


@given(st.integers(-30, 30), st.sampled_from(["fp16", "bf16", "e5m2"]))
@settings(max_examples=20, deadline=None)
def test_a_power_of_two_scale_shifts_the_histogram(exponent, fmt):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = tensor_stats(x * 2.0**exponent)
    assert tensor_stats(x).sqnr(fmt, 2.0**exponent) == pytest.approx(scaled.sqnr(fmt))


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_squares_that_fp64_cannot_hold(factor):
    # All of it lies in one of the outermost binades, of which the shape is not known.
    x = torch.randn(10_000, dtype=torch.float64)
    predicted = tensor_stats(x * factor).sqnr("int8", 30 / factor)
    assert predicted == pytest.approx(tensor_stats(x).sqnr("int8", 30.0), abs=6.0)


def test_wholly_flushed_and_empty_tensors():
    tiny = tensor_stats(torch.full((10,), 1e-20))
    assert tiny.median_relative_error("fp16") == 1.0
    assert tiny.sqnr("fp16") == pytest.approx(0.0)
    assert math.isnan(TensorStats.empty().sqnr("fp16"))
    assert math.isnan(TensorStats.empty().median_relative_error("fp16"))
