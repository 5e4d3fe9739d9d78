"""Whether all is finite: found wherever it stands, whatever the dtype and the layout."""

import math

import pytest
import torch

from numwatch.stats import finite
from numwatch.stats.finite import all_finite

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(params=["loops", "operations"], autouse=True)
def _each_implementation(request, monkeypatch):
    if request.param == "operations":
        monkeypatch.setattr(finite, "has_loops", lambda: False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_that_is_not_is_found_wherever_it_stands(dtype, bad):
    sizes = (1, 3, 1000, 40_000)
    for which, size in enumerate(sizes):
        for place in {0, size // 2, size - 1}:
            tensors = [torch.ones(n, dtype=dtype) for n in sizes]
            tensors[which][place] = bad
            assert not all_finite(tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite_though_their_norm_is_not(dtype):
    x = torch.full((50,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite([x, -x, torch.zeros(3, dtype=dtype), torch.empty(0, dtype=dtype)])


def test_other_layouts():
    x = torch.ones(4, 6)
    assert all_finite([x.T, x[:, ::2], torch.ones(()), x.expand(2, 4, 6)])
    x[1, 2] = math.nan
    assert not all_finite([x.T])
    assert not all_finite([x[:, ::2]])
    assert all_finite([x[:, 1::2]])
    assert all_finite([])
