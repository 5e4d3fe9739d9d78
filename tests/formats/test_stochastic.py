"""Stochastic rounding: unbiased, to a neighbour, and still where there is nothing to round."""

import math

import numpy as np
import pytest
import torch
from grids import SMALL, assert_same, values

from numwatch.formats import FORMATS, quantize, round_to_format

DRAWS = 10_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_a_value_on_the_grid_stays(fmt):
    grid = torch.from_numpy(values(fmt))
    for seed in range(8):
        found = quantize(grid, fmt, rounding="stochastic", generator=generator(seed))
        assert torch.equal(found, grid)


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_it_never_goes_past_the_neighbours(fmt):
    grid = values(fmt)
    for fraction in (2.0**-40, 0.1, 0.5, 1 - 2.0**-40):
        x = grid[:-1] + fraction * np.diff(grid)
        found = quantize(
            torch.from_numpy(x), fmt, rounding="stochastic", generator=generator()
        ).numpy()
        assert np.all((found == grid[:-1]) | (found == grid[1:]))


@pytest.mark.parametrize("fraction", [1 / 16, 1 / 3, 1 / 2, 0.99])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_the_share_that_goes_up_is_the_distance_from_below(fmt, fraction):
    neighbours = [(1.0, 1.0 + fmt.eps)]
    if fmt.has_zero:
        neighbours += [(0.0, fmt.smallest_subnormal)]
        last_step = max(2.0 ** (fmt.emax - fmt.mantissa_bits), fmt.smallest_subnormal)
        neighbours += [(fmt.max - last_step, fmt.max)]
    deviation = math.sqrt(DRAWS * fraction * (1 - fraction))
    for low, high in neighbours:
        x = torch.full((DRAWS,), low + fraction * (high - low), dtype=torch.float64)
        for sign in (1, -1) if fmt.signed else (1,):
            found = quantize(sign * x, fmt, rounding="stochastic", generator=generator()) * sign
            up = (found == high).sum().item()
            assert up + (found == low).sum().item() == DRAWS
            assert abs(up - DRAWS * fraction) < 5 * deviation


def test_values_below_the_flush_threshold_survive_in_the_mean():
    x = torch.full((DRAWS,), 2.0**-13)
    assert quantize(x, "e4m3").sum() == 0
    found = quantize(x, "e4m3", rounding="stochastic", generator=generator())
    expected = DRAWS / 16  # 2^-13 is a sixteenth of the smallest subnormal
    assert abs((found == 2.0**-9).sum() - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_overflow_saturates(fmt):
    x = torch.tensor([1.001, 1.9, 100.0], dtype=torch.float64) * fmt.max
    for seed in range(8):
        found = quantize(x, fmt, rounding="stochastic", generator=generator(seed))
        assert found.tolist() == [fmt.max] * 3


def test_without_saturation_the_neighbour_above_the_largest_value_is_an_overflow():
    x = torch.full((DRAWS,), 448.0 + 8.0)  # a quarter of the way to 480
    found = quantize(x, "e4m3", rounding="stochastic", saturate=False, generator=generator())
    overflows = found.isnan().sum().item()
    assert (found == 448).sum().item() == DRAWS - overflows
    assert abs(overflows - DRAWS / 4) < 5 * math.sqrt(DRAWS * 3 / 16)


def test_a_generator_makes_it_repeatable():
    x = torch.randn(1000, generator=generator())

    def rounded(seed):
        return round_to_format(x, "e4m3", rounding="stochastic", generator=generator(seed))

    assert_same(rounded(1), rounded(1))
    assert not torch.equal(rounded(1), rounded(2))


def test_small_updates_of_a_bf16_weight_are_lost_by_nearest_and_kept_in_the_mean():
    nearest, stochastic, draws = torch.ones(()), torch.ones(4000), generator()
    for _ in range(1000):
        nearest = round_to_format(nearest + 0.001, "bf16")
        stochastic = round_to_format(
            stochastic + 0.001, "bf16", rounding="stochastic", generator=draws
        )
    assert nearest == 1.0
    # Steps below 2^-7 at 1..2: the variance of each is 0.001 * (2^-7 - 0.001), of all 0.083^2.
    deviation = math.sqrt(1000 * 0.001 * (2**-7 - 0.001))
    assert stochastic.std().item() == pytest.approx(deviation, rel=0.1)
    assert stochastic.mean().item() == pytest.approx(2.0, abs=5 * deviation / math.sqrt(4000))
