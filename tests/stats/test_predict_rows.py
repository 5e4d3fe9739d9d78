"""What block counts predict of rows that have a scale each, against rows really rounded."""

import math
import warnings

import numpy as np
import pytest
import torch
from test_predict_blocks import DIMS, ROUGH, SMOOTH

from numwatch.formats import get_format, quantize
from numwatch.recommend.history import Rows
from numwatch.stats import tensor_stats
from numwatch.stats.predict_blocks import row_errors, row_shares
from numwatch.stats.predict_uncounted import uncounted_row_shares

KINDS = {**SMOOTH, **{kind: make for kind, make in ROUGH.items() if kind != "fp64"}}


def rounded_rows(x, fmt, dim, *, power_of_two):
    """Scaled as torchao does, in FP64 and rounded to FP32."""
    x = x.double()
    amax = x.abs().amax(dim, keepdim=True)
    scale = (get_format(fmt).max / amax.clamp(min=1e-12)).float()
    if power_of_two:
        scale = torch.exp2(scale.log2().floor())
    return quantize(x, fmt, scale=scale).double() / scale.double()


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("fmt", ["e4m3", "e5m2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_lies_within_the_bounds(kind, fmt, power_of_two):
    x = KINDS[kind]()
    stats = tensor_stats(x, blocks=(32,))
    nonzero = x != 0
    for direction, dim in DIMS.items():
        rounded = rounded_rows(x, fmt, dim, power_of_two=power_of_two)
        lost = ((rounded == 0) & nonzero).sum().item() / max(nonzero.sum().item(), 1)
        for blocks in (stats.blocks.of(32, direction), None):
            flushed, saturated = row_shares(stats, blocks, fmt, power_of_two=power_of_two)
            assert flushed.low <= lost <= flushed.high
            assert saturated.high == 0.0


def test_block_counts_raise_the_lower_bound():
    stats = tensor_stats(SMOOTH["2^4N"](), blocks=(32,))
    counted, _ = row_shares(stats, stats.blocks.of(32), "e4m3")
    blind, _ = row_shares(stats, None, "e4m3")
    assert counted.low > blind.low == 0.0
    assert counted.high == blind.high


@pytest.mark.parametrize("kind", ["gaussian", "2^1N", "2^2N"])
def test_errors_of_smooth_distributions_are_close(kind):
    x = KINDS[kind]()
    stats = tensor_stats(x, blocks=(32,))
    error = rounded_rows(x, "e4m3", -1, power_of_two=False) - x
    for blocks in (stats.blocks.of(32), None):
        median, sqnr = row_errors(stats, blocks, "e4m3")
        assert median == pytest.approx((error / x).abs().median().item(), rel=0.1)
        if kind == "gaussian":  # else it is the rows' amaxes', which such scales keep exactly
            truth = 10 * math.log10(x.square().sum() / error.square().sum())
            assert sqnr == pytest.approx(truth, abs=0.5)


def test_of_nothing_there_are_no_errors():
    stats = tensor_stats(torch.zeros(3, 3), blocks=(32,))
    assert all(map(math.isnan, row_errors(stats, stats.blocks.of(32), "e4m3")))


@pytest.mark.parametrize("power_of_two", [False, True])
def test_of_amaxes_beyond_any_scale_of_fp32_nothing_is_claimed(power_of_two):
    stats = tensor_stats(torch.full((4, 32), 1e60, dtype=torch.float64), blocks=(32,))
    for blocks in (stats.blocks.of(32), None):
        for share in row_shares(stats, blocks, "e4m3", power_of_two=power_of_two):
            assert (share.low, share.high) == (0.0, 1.0)
        assert all(map(math.isnan, row_errors(stats, blocks, "e4m3", power_of_two=power_of_two)))


@pytest.mark.parametrize("power_of_two", [False, True])
def test_of_formats_beyond_any_scale_of_fp32_nothing_is_claimed(power_of_two):
    """E8M0 ends at 2^127: a row of small values would need a larger scale than FP32 has."""
    stats = tensor_stats(torch.full((4, 32), 1e-9), blocks=(32,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, _ = row_shares(stats, stats.blocks.of(32), "e8m0", power_of_two=power_of_two)
        many, _ = uncounted_row_shares(
            Rows.of(stats),
            np.array([128]),
            get_format("e8m0"),
            power_of_two=power_of_two,
            length=None,
        )
        errors = row_errors(stats, stats.blocks.of(32), "e8m0", power_of_two=power_of_two)
    assert (one.low, one.high) == (0.0, 1.0)
    assert many.tolist() == [[0.0, 0.0, 1.0]]
    assert all(map(math.isnan, errors))
