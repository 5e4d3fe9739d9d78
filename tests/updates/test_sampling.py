import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numwatch.taps.sampling import sampled, stride_of

shapes = st.lists(st.integers(1, 300), min_size=1, max_size=3)


@given(shapes, st.integers(1, 5000))
def test_a_sample_keeps_to_its_limit_and_shares_no_factor_with_a_dimension(shape, limit):
    stride = stride_of(tuple(shape), limit)
    numel = math.prod(shape)
    assert -(-numel // stride) <= limit
    assert stride == 1 if numel <= limit else stride > 1
    if stride > 1:
        assert all(math.gcd(stride, size) == 1 for size in shape if size > 1)
    assert len(sampled(torch.empty(shape), limit)) == -(-numel // stride)


def test_every_column_of_a_matrix_is_met_equally_often():
    # 512 * 512 / 4096 = 64 divides 512: a plain stride would meet 8 of the 512 columns.
    column = torch.arange(512).expand(512, 512)
    met = torch.bincount(sampled(column, 4096), minlength=512)
    assert met.min() >= 7
    assert met.max() <= 9


def test_the_same_elements_whatever_the_memory_format():
    x = torch.randn(8, 4, 6, 6)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(sampled(x, 100), sampled(channels_last, 100))


@pytest.mark.parametrize("limit", [None, 12, 100])
def test_what_fits_is_taken_whole(limit):
    x = torch.randn(3, 4)
    assert torch.equal(sampled(x, limit), x.flatten())


def test_a_sample_is_detached():
    assert not sampled(torch.ones(3, requires_grad=True)).requires_grad
