"""Rounding at every value, midpoint and edge of every small format, against other libraries."""

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from grids import ORACLES, SMALL, assert_same, critical_inputs, magnitudes, values

from numwatch.formats import FORMATS, quantize, round_to_format

TORCH_FORMATS = [
    fmt for fmt in SMALL if fmt.torch_dtype is not None and fmt.name not in ("e8m0", "int8")
]
GFLOAT_FORMATS = {name: pair[1] for name, pair in ORACLES.items() if pair[1] and name != "e8m0"}
GFLOAT_FORMATS["mxint8"] = gfloat.formats.format_info_ocp_int8


@pytest.mark.parametrize("fmt", TORCH_FORMATS, ids=lambda f: f.name)
def test_agrees_with_torch(fmt):
    x = critical_inputs(fmt)
    if fmt.name == "e4m3":
        # Beyond 464 torch up to 2.12 gives NaN, from 2.13 on the largest value.
        x = x[x.abs() <= 464]
    assert_same(quantize(x, fmt, saturate=False), x.to(fmt.torch_dtype).float())


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "e8m0"])
def test_agrees_with_ml_dtypes(name):
    x = critical_inputs(FORMATS[name])
    with np.errstate(over="ignore"):
        expected = x.numpy().astype(ORACLES[name][0]).astype(np.float32)
    assert_same(quantize(x, name, saturate=False), torch.from_numpy(expected))


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("name", GFLOAT_FORMATS)
def test_agrees_with_gfloat(name, saturate):
    fmt, oracle = FORMATS[name], GFLOAT_FORMATS[name]
    x = critical_inputs(fmt)
    if not (fmt.has_inf or fmt.has_nan):
        saturate = True  # gfloat refuses to overflow where there is nothing to overflow to
    with np.errstate(over="ignore", invalid="ignore"):
        expected = gfloat.round_ndarray(oracle, x.double().numpy(), sat=saturate)
    assert_same(quantize(x, fmt, saturate=saturate), torch.from_numpy(expected))


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_nothing_on_the_grid_is_nearer_and_ties_go_to_the_even_code(fmt):
    x = critical_inputs(fmt)
    x = x[(x >= fmt.min) & (x <= fmt.max)].double().numpy()
    grid = values(fmt)
    at = np.searchsorted(grid, x, side="right").clip(1, grid.size - 1)
    low, high = grid[at - 1], grid[at]
    found = quantize(torch.from_numpy(x), fmt).numpy()
    to_low, to_high = x - low, high - x
    assert np.all(np.where(to_low < to_high, found == low, True))
    assert np.all(np.where(to_high < to_low, found == high, True))
    tie = to_low == to_high
    assert tie.sum() >= grid.size - 1
    codes = np.searchsorted(magnitudes(fmt), np.abs(found[tie]))
    # In E8M0 every significand is 1: a tie goes up, whatever the code.
    assert np.all(found[tie] == high[tie] if fmt.name == "e8m0" else codes % 2 == 0)


@pytest.mark.skipif(FORMATS["e8m0"].torch_dtype is None, reason="torch < 2.7 has no E8M0")
def test_e8m0_agrees_with_torch_but_at_its_lowest_step():
    x = critical_inputs(FORMATS["e8m0"])
    # Between 2^-127 and the midpoint torch goes up to 2^-126, away from the nearer value.
    lowest_step = (x.abs() > 2**-127) & (x.abs() < 1.5 * 2**-127)
    assert lowest_step.sum() > 0
    expected = x.to(torch.float8_e8m0fnu).float()
    found = quantize(x, "e8m0", saturate=False)
    assert_same(found[~lowest_step], expected[~lowest_step])
    assert torch.all(found[lowest_step] == 2**-127)


def test_int8_is_a_clamped_round():
    x = torch.linspace(-200, 200, 1601)
    assert torch.any(x.frac().abs() == 0.5)
    assert_same(quantize(x, "int8"), x.round().clamp(-128, 127) + 0.0)
    assert_same(quantize(x, "mxint8", scale=2**-6), (x.round().clamp(-128, 127) + 0.0) / 64)


def test_tf32_drops_thirteen_bits_of_fp32():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0x00800000, 0x7F7FE000, (100_000,), generator=generator)
    ties = codes & ~0x1FFF | 0x1000
    for code in (codes, ties):
        x = code.to(torch.int32).view(torch.float32)
        kept = (code + 0xFFF + (code >> 13 & 1)) & ~0x1FFF
        assert_same(quantize(x, "tf32", saturate=False), kept.to(torch.int32).view(torch.float32))


def test_tf32_has_nothing_between_zero_and_its_smallest_normal():
    smallest = 2.0**-126
    x = torch.tensor([0.25, 0.5, 0.5 + 2**-22, 0.75, 1.0]) * smallest
    assert_same(quantize(x, "tf32"), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]) * smallest)


def test_fp32_from_fp64_is_torchs_cast():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(2**63), 2**63 - 1, (200_000,), generator=generator)
    random = codes.view(torch.float64)
    log2 = torch.empty_like(random).uniform_(-152, 129, generator=generator)
    x = torch.cat([random, torch.exp2(log2)])
    found = quantize(x, "fp32", saturate=False)
    assert found.dtype == torch.float64
    assert_same(found, x.float())


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_overflow_goes_where_the_format_lets_it(fmt):
    x = torch.tensor([torch.inf, -torch.inf, 2.0 * fmt.max, -2.0 * fmt.max], dtype=torch.float64)
    low = fmt.min if fmt.signed else fmt.max
    saturated = torch.tensor([fmt.max, low, fmt.max, low], dtype=torch.float64)
    assert quantize(x, fmt).tolist() == saturated.tolist()
    found = quantize(x, fmt, saturate=False)
    if fmt.has_inf:
        assert found.tolist() == [torch.inf, -torch.inf, torch.inf, -torch.inf]
    elif fmt.has_nan:
        assert found.isnan().all()
    else:
        assert found.tolist() == saturated.tolist()


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_nan_stays_nan(fmt, rounding, saturate):
    x = torch.tensor([torch.nan, -torch.nan])
    assert quantize(x, fmt, rounding=rounding, saturate=saturate).isnan().all()


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_saturation_changes_overflows_alone(fmt):
    x = critical_inputs(fmt)
    free, saturated = quantize(x, fmt, saturate=False), quantize(x, fmt)
    overflow = ~free.isfinite()
    assert_same(saturated[~overflow], free[~overflow])
    limit = torch.where((x < 0) & fmt.signed, fmt.min, fmt.max)
    assert torch.equal(saturated[overflow], limit[overflow].float())


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_the_flush_threshold_is_the_last_value_to_flush(fmt):
    threshold = fmt.flush_threshold if fmt.has_zero else 2.0**-140
    x = torch.tensor([threshold, np.nextafter(threshold, 1.0)], dtype=torch.float64)
    expected = [0.0, fmt.smallest_subnormal] if fmt.has_zero else [fmt.min, fmt.min]
    assert quantize(x, fmt).tolist() == expected


def test_a_product_is_not_rounded_before_it_is_rounded_to_the_format():
    x, scale = float.fromhex("0x1.35735ap-1"), float.fromhex("0x1.c2094cp+0")
    in_fp32 = np.float32(x) * np.float32(scale)
    assert in_fp32 == 1.0625  # a tie, which would go to 1
    assert x * scale > 1.0625
    assert quantize(torch.tensor(x), "e4m3", scale=scale).item() == 1.125


def test_what_others_cast_to_where_e4m3_overflows():
    assert ml_dtypes.float8_e4m3fn(464.0) == 448
    assert np.isnan(np.float32(465).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    x = torch.tensor([464.0, 465.0])
    assert_same(round_to_format(x, "e4m3", saturate=False), torch.tensor([448.0, torch.nan]))
    assert_same(round_to_format(x, "e4m3"), torch.tensor([448.0, 448.0]))
