"""Flushed, subnormal and saturated shares against counting on the really rounded tensor."""

import math
from statistics import NormalDist

import pytest
import torch
from bit_patterns import patterns
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS, get_format, round_to_format
from numwatch.stats import tensor_stats

FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
POWERS = st.integers(-60, 60).map(lambda e: 2.0**e)
OTHER_SCALES = st.floats(2.0**-60, 2.0**60).map(lambda s: float(torch.tensor(s)))


def counted(x, fmt, scale):
    """Flushed, subnormal, saturated shares by rounding every element, and by FP64 comparison."""
    x = x.double()
    x = x[x.isfinite() & (x != 0)]
    if not len(x):
        return {"flushed": 0.0, "subnormal": 0.0, "saturated": 0.0}
    magnitude = x.abs() * scale
    # Magnitudes, as E8M0 has no sign.
    zeros = round_to_format(x.abs(), fmt, scale=scale) == 0
    has_subnormals = fmt.has_subnormals and not fmt.is_integer
    tiny = (magnitude < fmt.smallest_normal) & ~zeros if has_subnormals else zeros & False
    return {
        "flushed": zeros.double().mean().item(),
        "subnormal": tiny.double().mean().item(),
        "saturated": (magnitude > fmt.max).double().mean().item(),
    }


def assert_bounds_hold(x, fmt, scale):
    stats = tensor_stats(x)
    for name, share in counted(x, fmt, scale).items():
        figure = getattr(stats, name)(fmt, scale)
        if figure.exact:
            assert figure.value == pytest.approx(share, abs=1e-12), name
        assert figure.low - 1e-12 <= share <= figure.high + 1e-12, name
    return stats


@FORMAT
@given(x=patterns(torch.float32), scale=POWERS)
@settings(max_examples=60, deadline=None)
def test_power_of_two_scales(fmt, x, scale):
    stats = assert_bounds_hold(x, fmt, scale)
    cut = fmt.flush_threshold / scale
    if stats.pow2s == 0 and cut >= 2.0**-126:
        assert stats.flushed(fmt, scale).exact
        if fmt.smallest_normal / scale < 2.0**127:
            assert stats.subnormal(fmt, scale).exact
    if stats.amax * scale <= fmt.max:
        assert stats.saturated(fmt, scale).exact
        assert stats.saturated(fmt, scale).value == 0.0


@FORMAT
@given(x=patterns(torch.float32), scale=OTHER_SCALES)
@settings(max_examples=60, deadline=None)
def test_any_other_scale(fmt, x, scale):
    assert_bounds_hold(x, fmt, scale)


@FORMAT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2], ids=str)
@given(data=st.data(), scale=st.one_of(POWERS, OTHER_SCALES))
@settings(max_examples=20, deadline=None)
def test_coarse_tensors_full_of_powers_of_two(fmt, dtype, data, scale):
    assert_bounds_hold(data.draw(patterns(dtype)), fmt, scale)


@FORMAT
@given(x=patterns(torch.float64), scale=st.one_of(POWERS, OTHER_SCALES))
@settings(max_examples=20, deadline=None)
def test_fp64_beyond_the_counted_binades(fmt, x, scale):
    assert_bounds_hold(x, fmt, scale)


@FORMAT
def test_gradients_at_every_loss_scale_exactly(fmt):
    generator = torch.Generator().manual_seed(1)
    x = torch.exp2(torch.randn(5_000, generator=generator) * 4 - 20)
    x = x[x.frexp().mantissa != 0.5]
    stats = tensor_stats(x)
    for k in range(-20, 41, 3):
        scale = 2.0**k
        share = counted(x, fmt, scale)
        for name in ("flushed", "subnormal"):
            figure = getattr(stats, name)(fmt, scale)
            assert figure.exact
            assert figure.value == pytest.approx(share[name], abs=1e-12)
        saturated = stats.saturated(fmt, scale)
        top = 2.0**fmt.emax
        inside = ((x * scale >= top) & (x * scale < 2 * top)).any()
        assert saturated.exact or (inside and stats.amax * scale > fmt.max)
        assert saturated.low <= share["saturated"] <= saturated.high
        assert saturated.value == pytest.approx(share["saturated"], abs=0.015)


def test_estimates_for_other_scales_are_near():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50_000, generator=generator)
    stats = tensor_stats(x)
    for scale in (0.013, 0.3, 0.7, 1.1, 3.3, 90.0, 137.0, 448.0 / stats.amax, 300.0):
        for fmt in ("e4m3", "e2m1", "int8"):
            share = counted(x, get_format(fmt), scale)
            for name, exact in share.items():
                assert getattr(stats, name)(fmt, scale).value == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize(("exponent", "rounded"), [(0, 0.8414), (3, 0.5984), (15, 0.0030)])
def test_t1_fp16_underflow_by_loss_scale(exponent, rounded):
    generator = torch.Generator().manual_seed(0)
    mu, sigma, n = -29, 4, 2_000_000
    x = torch.exp2(torch.randn(n, generator=generator, dtype=torch.float64) * sigma + mu)
    flushed = tensor_stats(x).flushed("fp16", 2.0**exponent)
    analytic = NormalDist().cdf((-25 - mu - exponent) / sigma)
    deviation = math.sqrt(analytic * (1 - analytic) / n)
    assert flushed.exact
    assert abs(flushed.value - analytic) < 4 * deviation
    assert flushed.value == pytest.approx(rounded, abs=1e-3)


def test_ties_are_bounded_by_the_powers_of_two():
    tie = 2.0**-25
    x = torch.tensor([tie, -tie, 1.5 * tie, 3.0, 0.0, 2.0**-30])
    flushed = tensor_stats(x).flushed("fp16")
    # One element below, three in the cut's binade, three powers of two of which two lie outside it
    # at most.
    assert (flushed.low, flushed.high) == (0.4, 0.8)
    assert counted(x, get_format("fp16"), 1.0)["flushed"] == pytest.approx(0.6)
    # Nothing but powers of two: every element of the cut's binade is a tie.
    assert tensor_stats(torch.tensor([tie, tie, 1.0])).flushed("fp16").low == 2 / 3


def test_extremes_settle_what_the_histogram_leaves_open():
    # 448 = 1.75 x 2^8: the binade alone can't tell.
    assert tensor_stats(torch.tensor([300.0, 447.0])).saturated("e4m3").value == 0.0
    assert tensor_stats(torch.tensor([300.0, 447.0])).saturated("e4m3").exact
    assert tensor_stats(torch.tensor([450.0, 500.0])).saturated("e4m3").value == 1.0
    assert tensor_stats(torch.tensor([450.0, 500.0])).saturated("e4m3").exact
    mixed = tensor_stats(torch.tensor([300.0, 400.0, 500.0, 1.0])).saturated("e4m3")
    assert (mixed.low, mixed.high) == (0.25, 0.75)


def test_the_outermost_binades_may_be_hundreds_wide():
    x = torch.tensor([1e39, 1e236, 1e38, 1e-300, 1e-39], dtype=torch.float64)
    stats = tensor_stats(x)
    for fmt in ("fp32", "bf16", "fp16"):
        assert_bounds_hold(x, get_format(fmt), 1.0)
        assert 0.0 <= stats.median_relative_error(fmt) <= 1.0
        assert not math.isnan(stats.sqnr(fmt))


def test_underflow_pct_counts_over_all_elements():
    x = torch.tensor([0.0, 0.0, 2.0**-30, 1.5, math.nan])
    stats = tensor_stats(x)
    assert stats.underflow_pct("fp16").value == pytest.approx(20.0)
    assert stats.flushed("fp16").value == 0.5


def test_zeros_never_count_as_flushed():
    x = torch.tensor([0.0, -0.0, 1.0]).relu()
    assert tensor_stats(x).flushed("e2m1").value == 0.0


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "e4m3", "e5m2"])
def test_headroom(fmt):
    stats = tensor_stats(torch.tensor([3.0, -0.1]))
    assert stats.headroom(fmt) == pytest.approx(math.log2(get_format(fmt).max / 3.0))
    assert stats.headroom(fmt, 4.0) == pytest.approx(stats.headroom(fmt) - 2)
    full = tensor_stats(torch.tensor([get_format(fmt).max]))
    assert full.headroom(fmt) == 0.0
    assert tensor_stats(torch.zeros(3)).headroom(fmt) == math.inf


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_bad_scales_are_refused(scale):
    stats = tensor_stats(torch.ones(3))
    for figure in (stats.flushed, stats.headroom, stats.sqnr, stats.saturated, stats.subnormal):
        with pytest.raises(NumwatchError, match="a scale is positive and finite; got"):
            figure("fp16", scale)
