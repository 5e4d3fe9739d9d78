"""The fast paths in FP32 answer what rounding in FP64 does, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.formats import BLOCK_FORMATS, FORMATS, quantize, round_to_block_format
from numwatch.formats.fp32_blocks import round_blocks_fp32
from numwatch.formats.fp32_rounding import round_fp32

NARROW = [name for name, fmt in FORMATS.items() if fmt.bits <= 16]
POWER_OF_TWO_SCALES = [name for name, fmt in BLOCK_FORMATS.items() if not fmt.tensor_scale]


def same(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def grid_of(fmt):
    """Every non-negative value of a format, rising."""
    steps = torch.arange(2**fmt.mantissa_bits, dtype=torch.float64)
    if fmt.is_integer:
        return torch.arange(fmt.max / fmt.smallest_subnormal + 1) * fmt.smallest_subnormal
    emax = min(fmt.emax, 127)
    binades = [2.0**e * (1 + steps / len(steps)) for e in range(fmt.emin, emax + 1)]
    below = steps * fmt.smallest_subnormal if fmt.has_subnormals else steps[:1] * 0
    values = torch.cat([below, *binades]).unique()
    return values[values <= fmt.max]


@pytest.mark.parametrize("name", NARROW)
def test_every_value_midpoint_and_neighbour(name):
    fmt = FORMATS[name]
    grid = grid_of(fmt)
    middle = (grid[1:] + grid[:-1]) / 2
    points = torch.cat([grid, middle]).to(torch.float32)
    up = torch.from_numpy(np.nextafter(points.numpy(), np.float32(np.inf)))
    down = torch.from_numpy(np.nextafter(points.numpy(), np.float32(-np.inf)))
    beyond = torch.tensor([fmt.max * 1.01, 1e38, 1e-45, torch.inf, torch.nan, 0.0])
    x = torch.cat([points, up, down, beyond])
    x = torch.cat([x, -x])
    kept = x.clone()
    assert same(round_fp32(x, fmt).nan_to_num(7e7), quantize(x, fmt).nan_to_num(7e7))
    assert same(x, kept)


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50),
    st.sampled_from(NARROW),
)
def test_any_floats(values, name):
    x = torch.tensor(values, dtype=torch.float32)
    assert same(round_fp32(x, FORMATS[name]), quantize(x, FORMATS[name]))


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "e3m2"])
def test_stochastic_is_unbiased_and_leaves_the_grid_alone(name):
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    grid = grid_of(fmt).to(torch.float32)
    assert same(round_fp32(grid, fmt, "stochastic", generator), grid)
    share = 0.3
    x = torch.full((200_000,), float(fmt.smallest_normal * (1 + share * fmt.eps)))
    rounded = round_fp32(x, fmt, "stochastic", generator)
    neighbours = {fmt.smallest_normal, fmt.smallest_normal * (1 + fmt.eps)}
    assert set(rounded.unique().tolist()) == neighbours
    above = (rounded > fmt.smallest_normal).double().mean().item()
    assert abs(above - share) < 5 * (share * (1 - share) / len(x)) ** 0.5


def wild(rows, columns, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x = x * torch.exp2(sigma * torch.randn(rows, columns, generator=generator))
    return torch.where(torch.rand(rows, columns, generator=generator) < 0.1, 0.0, x)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.floats(0, 8),
    st.integers(0, 99),
    st.sampled_from(POWER_OF_TWO_SCALES),
    st.sampled_from([0, 1]),
    st.sampled_from(["floor", "ceil", "even", "rceil"]),
)
def test_blocks_with_power_of_two_scales(rows, columns, sigma, seed, name, dim, rule):
    x, fmt = wild(rows, columns, sigma, seed), BLOCK_FORMATS[name]
    found = round_blocks_fp32(x, fmt, dim=dim, scale_rule=rule)
    expected = round_to_block_format(x, fmt, dim=dim, scale_rule=rule if fmt.is_mx else None)
    # Not by bits: a block that vanished may leave -0 here.
    assert torch.equal(found.values, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.floats(0, 8), st.integers(0, 99))
def test_nvfp4_differs_only_where_an_element_is_at_a_midpoint(rows, columns, sigma, seed):
    x = wild(rows, columns, sigma, seed)
    found = round_blocks_fp32(x, BLOCK_FORMATS["nvfp4"]).values
    expected = round_to_block_format(x, "nvfp4")
    # One FP32 rounding of the dequantised value apart; a neighbour of the grid is 17 % or more.
    apart = (found - expected).abs() > 2.0**-22 * expected.abs()
    assert apart.double().mean() <= 0.001
