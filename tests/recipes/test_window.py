"""The window of loss scales against closed forms, whole tensors and the real GradScaler."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.formats import round_to_format
from numwatch.recipes import GradientGroup, inside, loss_scale_window
from numwatch.recipes.window import HIGHEST, LOWEST, NEGLIGIBLE
from numwatch.stats import TensorStats, tensor_stats

N = 1_000_000
EXPONENTS = range(LOWEST, HIGHEST + 1)


def seen(x, loss_scale=1.0, slot="a", rounded=False):
    """A group of unscaled gradients x, seen at a loss scale; in FP16 by then if `rounded`."""
    x = torch.as_tensor(x) * loss_scale
    return GradientGroup(slot, loss_scale, tensor_stats(x.half() if rounded else x), rounded)


def lognormal(mean, deviation):
    """Gradients of facts T1: log2 |x| ~ N(mean, deviation)."""
    generator = torch.Generator().manual_seed(7)
    return torch.exp2(torch.randn(N, generator=generator, dtype=torch.float64) * deviation + mean)


def by_exponent(window):
    return {line.exponent: line for line in window.lines}


@pytest.mark.parametrize(("mean", "deviation"), [(-29, 4), (-20, 3), (-29, 2)])
def test_t1_starts_where_the_normal_distribution_crosses_the_threshold(mean, deviation):
    window = loss_scale_window([seen(lognormal(mean, deviation))])
    normal = NormalDist(mean, deviation)
    assert window.low == math.ceil(-25 - normal.inv_cdf(NEGLIGIBLE))
    for line in window.lines:
        share = normal.cdf(-25 - line.exponent)
        assert line.flushed.exact
        assert line.flushed.value == pytest.approx(share, abs=5 * math.sqrt(share / N) + 1e-9)


def test_shares_worst_slots_and_overflows_of_a_histogram_made_by_hand():
    many = torch.full((1000,), 1.5)
    many[0] = 1.5 * 2.0**-30
    few = torch.tensor([1.5 * 2.0**-30, 1.5 * 2.0**-29, 1.5, 1.5 * 2.0**8])
    window = loss_scale_window([seen(many, slot="many"), seen(few, slot="few")])
    lines = by_exponent(window)
    # What exceeds 2^-25 is kept: from an exponent of 5 on nothing is flushed.
    flushed = {k: (lines[k].flushed.value, lines[k].worst_flushed.value) for k in (3, 4, 5)}
    assert flushed == {3: (3 / 1004, 0.5), 4: (2 / 1004, 0.25), 5: (0.0, 0.0)}
    assert (lines[4].worst, lines[5].worst) == ("few", None)
    # 1.5 * 2^8 * 2^7 = 49152 holds.
    assert {k: lines[k].overflows for k in (7, 8)} == {7: (), 8: ("few",)}
    assert (window.low, window.high, window.empty) == (5, 7, False)


def test_a_negligible_share_is_a_choice():
    x = torch.ones(1000)
    x[:2] = 1.5 * 2.0**-30
    groups = [seen(x)]
    assert loss_scale_window(groups).low == 5
    assert loss_scale_window(groups, negligible=0.002).low == LOWEST
    assert NEGLIGIBLE == 0.001


@pytest.mark.parametrize(
    ("fmt", "amax", "holds"),
    [
        ("fp16", 65519.0, True),
        ("fp16", 65520.0, False),
        ("e5m2", 61439.0, True),
        ("e5m2", 61440.0, False),
        # The tie goes to the even mantissa, which is that of the largest value.
        ("e4m3", 464.0, True),
        ("e4m3", 464.5, False),
    ],
)
def test_it_overflows_from_the_first_magnitude_that_rounds_beyond_the_largest(fmt, amax, holds):
    rounded = round_to_format(torch.tensor(amax), fmt, saturate=False)
    assert bool(rounded.isfinite()) == holds
    window = loss_scale_window([seen([-amax, 1.0])], fmt)
    assert window.high == (0 if holds else -1)


@given(
    magnitudes=st.lists(st.floats(2.0**-40, 2.0**10, width=32), min_size=1, max_size=30),
    exponents=st.lists(st.integers(-20, 30), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_the_loss_scale_gradients_were_seen_at_does_not_matter(magnitudes, exponents):
    expected = loss_scale_window([seen(magnitudes) for _ in exponents])
    window = loss_scale_window([seen(magnitudes, 2.0**exponent) for exponent in exponents])
    assert (window.low, window.high) == (expected.low, expected.high)
    lines = by_exponent(expected)
    assert all(line == lines[line.exponent] for line in window.lines if line.exponent in lines)
    assert any(line.exponent in lines for line in window.lines)


@given(
    magnitudes=st.lists(st.floats(2.0**-40, 2.0**10, width=32), min_size=1, max_size=30),
    zeros=st.integers(0, 30),
    exponent=st.integers(-20, 20),
    rounded=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_higher_scale_flushes_no_more_and_overflows_no_less(magnitudes, zeros, exponent, rounded):
    window = loss_scale_window(
        [seen([*magnitudes, *[0.0] * zeros], 2.0**exponent, rounded=rounded)]
    )
    for lower, higher in zip(window.lines, window.lines[1:], strict=False):
        assert higher.exponent == lower.exponent + 1
        for end in ("value", "low", "high"):
            assert getattr(higher.flushed, end) <= getattr(lower.flushed, end)
        assert len(higher.overflows) >= len(lower.overflows)
    if window.high is not None:
        assert not any(line.overflows for line in window.lines if line.exponent <= window.high)
        assert all(line.overflows for line in window.lines if line.exponent > window.high)


# What a scale would flush, told from FP16 tensors whose own flushing was at another one.
@pytest.mark.parametrize("structural_zeros", [0, N])
@pytest.mark.parametrize(
    ("exponent", "error"), [(0, 0.15), (4, 0.04), (8, 0.025), (12, 0.005), (16, 0.001)]
)
def test_t1_from_gradients_that_are_fp16_already(exponent, error, structural_zeros):
    x = lognormal(-29, 4)
    padded = torch.cat([x, torch.zeros(structural_zeros, dtype=x.dtype)])
    window = loss_scale_window([seen(padded, 2.0**exponent, rounded=True)])
    truth = NormalDist(-29, 4)
    assert window.low == pytest.approx(17, abs=2)
    assert {exponent - 2, exponent + 2} <= set(by_exponent(window))
    for line in window.lines:
        share = truth.cdf(-25 - line.exponent)
        assert line.flushed.value == pytest.approx(share, abs=error)
        counted = (x <= 2.0 ** (-25 - line.exponent)).double().mean().item()
        assert line.flushed.low <= counted <= line.flushed.high


def test_values_rounded_onto_the_cut_had_been_on_either_side_of_it():
    # Even over FP16's subnormals: a scale 8 times lower flushes all up to 2^-22.
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(N, generator=generator, dtype=torch.float64) * 2.0**-14
    (line,) = (
        line for line in loss_scale_window([seen(x, rounded=True)]).lines if line.exponent == -2
    )
    exact = (x <= 2.0**-23).double().mean().item()
    assert line.flushed.value == pytest.approx(exact, rel=0.1)
    assert line.flushed.low < exact < line.flushed.high


def test_a_tensor_that_is_not_rounded_yet_has_lost_nothing():
    x = torch.cat([torch.zeros(10), torch.full((10,), 2.0**-20)])
    line = by_exponent(loss_scale_window([seen(x)]))[0]
    assert (line.flushed.value, line.flushed.exact) == (0.0, True)


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan, -1.0])
def test_a_loss_scale_that_tells_nothing_is_left_out(scale):
    dead = GradientGroup("dead", scale, tensor_stats(torch.tensor([1e30, 1e-30])), False)
    alive = seen([1.0, 2.0])
    assert loss_scale_window([dead, alive]) == loss_scale_window([alive])
    nothing = loss_scale_window([dead])
    assert (nothing.lines, nothing.low, nothing.high, nothing.empty) == ((), None, None, True)
    assert inside(nothing, [1.0, 2.0]) == (0, 2, 0)


def test_amax_alone_tells_the_upper_end():
    amax_only = TensorStats(9, 0, 0, 0, 0, 0, 1024.0, math.inf, 0.0, 0.0, 0, ())
    window = loss_scale_window([GradientGroup("a", 1.0, amax_only, rounded=True)])
    assert (window.low, window.high, window.empty) == (None, 5, True)


def test_gradients_of_zero_fit_any_scale():
    window = loss_scale_window([seen(torch.zeros(5))])
    assert (window.low, window.high) == (None, HIGHEST)
    assert {line.flushed.value for line in window.lines} == {0.0}


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_elements_overflowed_at_the_scale_they_were_seen_at(value):
    finite = seen([1.0, 2.0], 2.0**10)
    group = GradientGroup("b", 2.0**12, tensor_stats(torch.tensor([value, 1.0])), True)
    window = loss_scale_window([finite, group])
    assert window.high == 11
    assert by_exponent(window)[12].overflows == ("b",)


def test_nan_alone_is_no_overflow():
    x = torch.tensor([math.nan, 1.0])
    assert loss_scale_window([seen(x)]).high == 15


def test_gradients_wider_than_fp16_have_no_window():
    window = loss_scale_window([seen([2.0**20, *[2.0**-30] * 3])])
    assert (window.low, window.high, window.empty) == (6, -5, True)
    exponents = [line.exponent for line in window.lines]
    assert exponents == list(range(-7, 9))
    # Where a scale is both too low and too high, the overflow decides.
    assert inside(window, [2.0**exponent for exponent in (-6, -5, -4, 6, 7)]) == (2, 0, 3)


@pytest.mark.parametrize("turn", [1, -1])
def test_what_overflowed_once_overflows_whatever_came_before_or_after(turn):
    groups = [seen([3.0], slot="a"), seen([1.0], slot="a"), seen([1.0], slot="b")]
    window = loss_scale_window(groups[::turn])
    assert (window.high, by_exponent(window)[15].overflows) == (14, ("a",))


def test_lines_reach_two_beyond_the_window_and_the_scales_seen():
    window = loss_scale_window([seen([1.0, 2.0**-30], 2.0**22)])
    assert (window.low, window.high) == (6, 15)
    assert [line.exponent for line in window.lines] == list(range(4, 25))


@pytest.mark.parametrize(
    ("scales", "counts"),
    [
        ([2.0**6, 2.0**15, 1000.0], (0, 3, 0)),
        ([63.9, 0.0, 2.0**-140], (3, 0, 0)),
        ([32769.0, math.inf, math.nan], (0, 0, 3)),
        ([], (0, 0, 0)),
    ],
)
def test_steps_are_counted_by_where_their_scale_lay(scales, counts):
    window = loss_scale_window([seen([1.0, 2.0**-30])])
    assert (window.low, window.high) == (6, 15)
    found = inside(window, scales)
    assert found == counts
    assert (found.below, found.inside, found.above) == counts


def test_a_real_gradscaler_skips_the_steps_above_the_window():
    gradient = torch.tensor([3.0, 1e-3, 2.0**-20])
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
    groups, scales, skips = [], [], 0
    for _ in range(40):
        scaler.scale(torch.ones(()))
        scale = scaler.get_scale()
        half = (gradient * scale).half()
        weight.grad = half.float()
        scaler.step(optimizer)
        scaler.update()
        skips += scaler.get_scale() < scale
        scales.append(scale)
        groups.append(GradientGroup("weight", scale, tensor_stats(half), rounded=True))
    window = loss_scale_window(groups)
    # 3 * 2^14 is the last to hold.
    assert window.high == 14
    assert 6 + 5 <= skips < 20
    assert inside(window, scales) == (0, 40 - skips, skips)
