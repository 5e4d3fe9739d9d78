"""Rows and `TensorStats`: packing, merging, and the plain figures."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bit_patterns import assert_same, expected_stats, patterns
from hypothesis import given, settings
from hypothesis import strategies as st

import numwatch.stats as nws
from numwatch.errors import NumwatchError
from numwatch.stats import Bounded, TensorStats, tensor_stats

# Small integers times a power of two: sums are exact, so that merging is equal to the last bit.
VALUES = st.lists(
    st.one_of(
        st.integers(-(2**20), 2**20).map(lambda i: i * 2.0**-10),
        st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]),
    ),
    max_size=30,
)


def stats_of(values):
    return tensor_stats(torch.tensor(values, dtype=torch.float64))


@given(VALUES, st.data())
@settings(deadline=None)
def test_merging_any_split_in_any_order_equals_the_whole(values, data):
    order = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    shuffled = [values[i] for i in order]
    parts = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    pending = [stats_of(part) for part in parts]
    while len(pending) > 1:
        i = data.draw(st.integers(0, len(pending) - 2))
        pending[i : i + 2] = [pending[i] + pending[i + 1]]
    assert pending[0] == stats_of(values)


@given(patterns(torch.float32), patterns(torch.float32), patterns(torch.float32))
@settings(deadline=None)
def test_merge_is_a_commutative_monoid(a, b, c):
    a, b, c = (tensor_stats(x) for x in (a, b, c))
    assert_same((a + b) + c, a + (b + c))
    assert a + b == b + a
    assert a + TensorStats.empty() == a == TensorStats.empty() + a


def amax_only(values):
    counts, reals = nws.new_rows(1)
    nws.accumulate_amax(torch.tensor(values), counts[0], reals[0])
    return nws.unpack_row(counts[0].numpy(), reals[0].numpy())


NOTHING_BUT_NONFINITE = [[], [math.nan], [math.inf, -math.inf]]


@pytest.mark.parametrize("full", [[0.0], [1.0, 2.0], [math.nan, 0.0]])
@pytest.mark.parametrize("only", [[4.0], [0.0], [math.nan, 1.0]])
def test_amax_only_statistics_do_not_merge_with_full_ones(full, only):
    for a, b in ((stats_of(full), amax_only(only)), (amax_only(only), stats_of(full))):
        with pytest.raises(NumwatchError, match="merge the two kinds apart") as caught:
            a.merge(b)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[4.0], [0.0], *NOTHING_BUT_NONFINITE])
def test_amax_only_statistics_merge_with_their_like(values):
    merged = amax_only([3.0, math.nan, -math.inf]) + amax_only(values)
    assert merged == amax_only([3.0, math.nan, -math.inf, *values])
    assert merged.amax_only


@pytest.mark.parametrize("values", NOTHING_BUT_NONFINITE)
def test_what_has_no_finite_element_is_both_full_and_amax_only(values):
    assert replace(stats_of(values), dtype=None) == amax_only(values)
    assert not amax_only(values).amax_only
    assert not (stats_of(values) + stats_of([1.0])).amax_only


def test_merge_says_when_dtypes_differ():
    single, half = tensor_stats(torch.ones(2)), tensor_stats(torch.ones(2).half())
    assert (single + single).dtype == "float32"
    assert (single + half).dtype == (single + half + single).dtype == "mixed"


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=20),
    st.lists(st.floats(-100, 100), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_merged_variance_is_that_of_the_parallel_formula(xs, ys):
    a, b = stats_of(xs), stats_of(ys)
    n, m = len(xs), len(ys)
    delta = np.mean(ys) - np.mean(xs)
    squares = n * np.var(xs) + m * np.var(ys) + delta**2 * n * m / (n + m)
    assert (a + b).var == pytest.approx(squares / (n + m), rel=1e-9, abs=1e-9)


@given(patterns(torch.float64), st.integers(0, 5))
@settings(deadline=None)
def test_rows_unpack_to_what_was_packed(x, calls):
    stats = expected_stats(x)
    counts, reals = nws.pack_row(stats, calls)
    # As text, where a NaN equals itself: FP64 sums may overflow.
    assert str(nws.unpack_row(counts, reals, "float64")) == str(stats)
    assert counts[nws.CALLS] == calls


def test_an_empty_row_is_the_empty_statistics():
    counts, reals = nws.new_rows(2)
    nws.accumulate(torch.ones(3), counts[0], reals[0])
    nws.reset_rows(counts, reals)
    for i in range(2):
        assert nws.unpack_row(counts[i].numpy(), reals[i].numpy()) == TensorStats.empty()


def test_merging_rows_is_merging_statistics():
    xs = [torch.randn(50) * 10.0**i for i in range(4)]
    counts, reals = nws.new_rows(4)
    for i, x in enumerate(xs):
        nws.accumulate(x, counts, reals, i)
    nws.merge_rows(counts[:2], reals[:2], counts[2:], reals[2:])
    for i in range(2):
        merged = nws.unpack_row(counts[i].numpy(), reals[i].numpy(), "float32")
        assert_same(merged, tensor_stats(torch.cat([xs[i], xs[i + 2]])))
        assert counts[i, nws.CALLS] == 2


def test_columns_do_not_overlap():
    columns = [nws.ZEROS, nws.NANS, nws.POSINFS, nws.NEGINFS, nws.POW2S, nws.NUMEL, nws.CALLS]
    assert sorted(columns) == list(range(nws.BINADES, nws.COUNTS))
    assert sorted([nws.AMAX, nws.AMIN, nws.SUM, nws.SUMSQ]) == list(range(nws.REALS))
    assert nws.BINADES == 255


def test_plain_figures():
    stats = stats_of([3.0, -4.0, 0.0, -0.0, math.nan])
    assert (stats.nonzeros, stats.finites, stats.nonfinites, stats.numel) == (2, 4, 1, 5)
    assert (stats.mean, stats.var, stats.norm, stats.rms) == (-0.25, 6.1875, 5.0, 2.5)
    assert stats.zero_share == 0.4


@pytest.mark.parametrize("values", [[1e300], [1e300, -1e300], [1e300, 1.7e308, 1e308]])
def test_variance_beyond_fp64_is_inf(values):
    stats = stats_of(values)
    assert (stats.var, stats.rms, stats.norm) == (math.inf,) * 3


def test_figures_of_nothing():
    empty = TensorStats.empty()
    assert all(math.isnan(v) for v in (empty.mean, empty.var, empty.rms))
    assert (empty.zero_share, empty.norm, empty.spread) == (0.0, 0.0, 0.0)
    assert empty.headroom("fp16") == math.inf
    for figure in (empty.flushed, empty.subnormal, empty.saturated, empty.underflow_pct):
        assert figure("fp16") == Bounded.exactly(0.0)


def test_spread_of_a_log_uniform_tensor():
    exponents = torch.arange(10_000, dtype=torch.float64) / 10_000 * 20 - 10
    assert tensor_stats(torch.exp2(exponents)).spread == pytest.approx(20 * 0.998, abs=0.01)


def test_as_dict_is_plain_data():
    text = json.dumps(tensor_stats(torch.ones(4), blocks=(2,)).as_dict())
    assert json.loads(text)["binades"] == [4]


def test_a_bounded_figure_stays_in_its_bounds():
    assert Bounded.exactly(0.5).exact
    assert not Bounded(0.5, 0.4, 0.6).exact
    assert Bounded.within(0.9, 0.0, 0.5) == Bounded(0.5, 0.0, 0.5)
    assert Bounded(1.0, 0.0, 2.0).times(3.0) == Bounded(3.0, 0.0, 6.0)
    assert float(Bounded(1.0, 0.0, 2.0)) == 1.0
    with pytest.raises(ValueError, match="outside"):
        Bounded(0.7, 0.0, 0.5)
