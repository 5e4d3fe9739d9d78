"""Figures of second moments: the loop against torch's operations, and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.stats import moments
from numwatch.stats.moments import MOMENTS, second_moment_figures

SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 1e-20, 3e38)
NUMBERS = st.one_of(st.sampled_from(SPECIAL), st.floats(-1e3, 1e3, width=32))
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(PAIRS, st.sampled_from([0.0, 1e-8, 0.5]), st.sampled_from([1.0, 1e-3]))
@settings(max_examples=150, deadline=None)
def test_the_loop_finds_what_torch_s_operations_do(pairs, eps, correction):
    v, gradient = (torch.tensor([[pair[i] for pair in pairs]] * 2) for i in (0, 1))
    v[1] = v[1].abs()
    given_ = (v, gradient, double(eps, eps), double(correction, 1.0))
    found, expected = moments.by_loops(*given_), moments.by_operations(*given_)
    assert torch.equal(found[:, :4], expected[:, :4])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_elements_of_every_dtype(dtype):
    v, gradient = torch.rand(3, 5000).to(dtype), torch.randn(3, 5000).to(dtype)
    given_ = (v, gradient, double(1e-8, 0.1, 0.5), double(1.0, 0.5, 0.1))
    found = moments.by_loops(*given_)
    torch.testing.assert_close(found, moments.by_operations(*given_), rtol=1e-12, atol=0)


def test_each_count_by_hand():
    v = torch.tensor([[0.0, 0.0, 1e-6, 4.0, 0.25]])
    gradient = torch.tensor([[0.0, 2.0, math.nan, 1.0, 1.0]])
    (row,) = second_moment_figures(v, gradient, double(0.01), double(1.0)).tolist()
    found = dict(zip(MOMENTS, row, strict=True))
    assert found["touched"] == 4  # all but the first
    assert found["below_eps"] == 2  # 0 and 1e-6, whose root is 1e-3
    assert (found["with_gradient"], found["vanished"]) == (3, 1)
    (row,) = second_moment_figures(v[:, 3:], gradient[:, 3:], double(0.01), double(0.5)).tolist()
    assert row[-1] == pytest.approx((1 / 8 + 1 / 0.5) / 2)


def test_fp64_state_is_judged_in_fp64():
    gradient = torch.full((1, 8), 1e-25, dtype=torch.float64)
    v = gradient.square() * 4  # 4e-50 is zero in FP32
    (row,) = second_moment_figures(v, gradient, double(1e-30), double(1.0)).tolist()
    found = dict(zip(MOMENTS, row, strict=True))
    assert (found["with_gradient"], found["vanished"], found["below_eps"]) == (8, 0, 0)
    assert row[-1] == pytest.approx(0.25)
