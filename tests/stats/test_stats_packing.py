"""Samples of many tensors side by side: the loop against torch's own operations."""

import math

import pytest
import torch
from bit_patterns import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.stats import packing
from numwatch.stats.dtypes import every_kind
from numwatch.stats.packing import pack


def tensors_of(dtype, shape, count):
    """Contiguous ones and one transposed, of every kind of value, so that bits are compared."""
    kinds = every_kind(dtype)
    numel = math.prod(shape)
    many = kinds.repeat(-(-(numel + count) // kinds.numel()))
    tensors = [many[i : i + numel].reshape(shape) for i in range(count)]
    return [*tensors, tensors[0].reshape(shape[::-1]).T]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 40), min_size=2, max_size=2),
    st.integers(1, 4),
    st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_the_loop_copies_what_torch_s_operations_do(dtype, shape, count, stride):
    tensors = tensors_of(dtype, tuple(shape), count)
    strides, n = [stride] * len(tensors), -(-math.prod(shape) // stride)
    found = packing.by_loops(tensors, strides, n, dtype)
    expected = packing.by_operations(tensors, strides, n, dtype)
    assert (found.shape, found.dtype) == ((len(tensors), n), dtype)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_each_tensor_has_its_own_stride():
    packed = pack([torch.arange(6.0), torch.arange(18.0).reshape(3, 6)], [1, 3], 6)
    assert packed.tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 6, 9, 12, 15]]


def test_dtypes_that_differ_are_promoted():
    packed = pack([torch.ones(2), torch.ones(2, dtype=torch.bfloat16)], [1, 1], 2)
    assert packed.dtype == torch.float32
    assert packed.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("make", [lambda x: x.conj().imag, lambda x: x.real])
def test_views_that_hold_other_numbers_than_their_memory(make):
    x = make(torch.tensor([1 + 2j, 3 - 4j]))
    assert pack([x], [1], 2).tolist() == [x.tolist()]


def test_a_pack_is_a_detached_copy():
    x = torch.nn.Parameter(torch.ones(3))
    packed = pack([x], [1], 3)
    x.data.zero_()
    assert not packed.requires_grad
    assert packed.tolist() == [[1, 1, 1]]


def test_a_tensor_of_another_size_than_the_rest_is_refused_and_not_read_beyond_its_end():
    whole, cut = torch.ones(64, 64), torch.ones(2, 2)
    for stride in (1, 5):  # of the second one element is left, which could fill a row
        n = -(-whole.numel() // stride)
        with pytest.raises(NumwatchError, match="has 4 elements now"):
            packing.by_loops([whole, cut], [stride, stride], n, torch.float32)
        with pytest.raises(RuntimeError):
            packing.by_operations([whole, cut], [stride, stride], n, torch.float32)
