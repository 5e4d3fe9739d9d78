"""Block counts by the GPU kernel, interpreted: count for count the reference's."""

import pytest
import torch
from bit_patterns import DTYPES, patterns
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import every
from triton_truth import random_bits

from numwatch.stats import block_reference, new_block_rows
from numwatch.stats.block_layout import BLOCK_KINDS, DEEP_RATIO, EDGE_RATIO, NEAR_RATIO
from numwatch.stats.dtypes import every_kind
from numwatch.stats.gpu import block_launch

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def assert_blocks_agree(x):
    actual, expected = new_block_rows(2)
    block_launch.accumulate_blocks(x, actual)
    block_reference.accumulate_blocks(x, expected, BLOCK_KINDS)
    assert torch.equal(actual, expected)


SHAPES = [(), (0,), (1,), (3, 0), (15, 17), (33, 9), (3, 65), (2, 3, 20)]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *((torch.bfloat16, shape) for shape in SHAPES),
        *((dtype, (15, 17)) for dtype in DTYPES if dtype != torch.bfloat16),
    ],
    ids=str,
)
def test_shapes(dtype, shape):
    size = torch.Size(shape).numel()
    assert_blocks_agree(random_bits(dtype, size).view(shape))


@ALL_DTYPES
def test_every_kind_of_value(dtype):
    x = every_kind(dtype)[::3]
    assert_blocks_agree(x[: x.numel() // 7 * 7].view(7, -1))


@pytest.mark.parametrize(
    "dtype", every(2, [torch.float32, torch.bfloat16, torch.float8_e4m3fn]), ids=str
)
def test_strides(dtype):
    x = torch.randn(40, 70).to(dtype)
    for y in (x.T, x[:, 3:], x[::2, ::3], x.T[:, ::2], x[0].expand(20, 70)):
        assert_blocks_agree(y)


@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_bit_patterns(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    x = data.draw(patterns(dtype, max_size=60))
    assert_blocks_agree(x[: x.numel() // 3 * 3].view(3, -1) if x.numel() > 3 else x)


@pytest.mark.parametrize("ratio", [NEAR_RATIO, EDGE_RATIO, DEEP_RATIO])
@pytest.mark.parametrize("exponent", [-130, -3, 0, 100])
def test_values_beside_each_threshold(ratio, exponent):
    # Of any amax the FP32 values next to its share, on both sides.
    amaxes = (1 + torch.rand(64)).double() * 2.0**exponent
    amaxes = amaxes.float()
    share = (amaxes.double() / ratio).float()
    bits = share.view(torch.int32)
    around = [bits + step for step in range(-3, 4)]
    x = torch.stack([amaxes, *(b.view(torch.float32) for b in around)], dim=1)
    assert_blocks_agree(x)


def test_calls_add_up():
    actual, expected = new_block_rows(2)
    for x in (torch.randn(5, 20), torch.randn(40, 8)):
        block_launch.accumulate_blocks(x, actual)
        block_reference.accumulate_blocks(x, expected, BLOCK_KINDS)
    assert torch.equal(actual, expected)
