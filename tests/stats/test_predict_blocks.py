"""What block counts predict against tensors that are really rounded."""

import math
from itertools import product

import pytest
import torch
from bit_patterns import patterns
from block_truth import true_errors, true_shares
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.formats import BLOCK_FORMATS, get_block_format
from numwatch.stats import tensor_stats
from numwatch.stats.predict_blocks import block_errors, block_shares

RULES = ("floor", "ceil", "even", "rceil")
CASES = [
    (name, rule)
    for name, fmt in BLOCK_FORMATS.items()
    for rule in (RULES if fmt.is_mx else (None,))
]
EVERY_CASE = pytest.mark.parametrize(("name", "rule"), CASES)
DIMS = {"last": -1, "across": 0}
SHAPE = (192, 200)


def gaussian():
    return torch.randn(SHAPE)


def log_normal(sigma):
    return torch.exp2(torch.randn(SHAPE) * sigma) * torch.randn(SHAPE).sign()


def outlier_channels():
    x = torch.randn(SHAPE)
    x[:, ::41] *= 300
    return x


def rows_of_all_sizes():
    return torch.randn(SHAPE) * torch.exp2(torch.randn(SHAPE[0], 1) * 6)


def sparse():
    return torch.randn(SHAPE) * (torch.rand(SHAPE) < 0.05)


def zero_blocks():
    x = torch.randn(SHAPE)
    x[:70], x[:, 64:128] = 0, 0
    return x


def subnormals():
    return torch.randn(SHAPE) * torch.exp2(torch.linspace(-149, -100, SHAPE[0]).round())[:, None]


SMOOTH = {"gaussian": gaussian, **{f"2^{s}N": (lambda s=s: log_normal(s)) for s in (1, 2, 4)}}
ROUGH = {
    "2^6N": lambda: log_normal(6),
    "2^8N": lambda: log_normal(8),
    "outliers": outlier_channels,
    "rows": rows_of_all_sizes,
    "sparse": sparse,
    "zeros": zero_blocks,
    "subnormals": subnormals,
    "bf16": lambda: torch.randn(SHAPE).bfloat16(),
    "fp8": lambda: torch.randn(SHAPE).to(torch.float8_e4m3fn).float(),
    "all zero": lambda: torch.zeros(SHAPE),
    "one": lambda: torch.ones(1, 1),
    "powers": lambda: torch.exp2(torch.randint(-30, 3, SHAPE).float()),
    "huge": lambda: torch.randn(SHAPE) * 2.0**125,
    "fp64": lambda: torch.randn(SHAPE).double() * torch.exp2(torch.randn(SHAPE).double() * 80),
}


def counted(x, name, direction):
    stats = tensor_stats(x, blocks=(16, 32))
    return stats, stats.blocks.of(min(get_block_format(name).block[1], 32), direction)


def assert_holds(x, name, rule, direction):
    stats, blocks = counted(x, name, direction)
    predicted = block_shares(stats, blocks, name, rule)
    for share, truth in zip(predicted, true_shares(x, name, rule, DIMS[direction]), strict=True):
        assert share.low <= truth <= share.high, (name, rule, direction, share, truth)
    return predicted


@EVERY_CASE
@pytest.mark.parametrize("kind", [*SMOOTH, *ROUGH])
def test_the_truth_lies_within_the_bounds(kind, name, rule):
    x = {**SMOOTH, **ROUGH}[kind]()
    for direction in DIMS:
        assert_holds(x, name, rule, direction)


@EVERY_CASE
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=25, deadline=None)
def test_the_truth_of_any_bit_patterns_lies_within_the_bounds(name, rule, data, dtype):
    x = data.draw(patterns(dtype))
    x = x.where(x.isfinite(), 0.0)
    # Products of block scaling must stay within FP64.
    x = x.where((x.abs() > 1e-150) & (x.abs() < 1e150), 0.0)
    x = x[: x.numel() // 3 * 3].view(3, -1)
    assume(x.numel())
    for direction in DIMS:
        assert_holds(x, name, rule, direction)


@pytest.mark.parametrize("rule", ["floor", "ceil", "rceil"])
@pytest.mark.parametrize("name", [n for n, f in BLOCK_FORMATS.items() if f.is_mx and n != "mxint8"])
@pytest.mark.parametrize("kind", ["2^4N", "2^8N", "rows", "outliers", "bf16", "fp8", "powers"])
def test_mx_shares_are_exact_ties_included(kind, name, rule):
    x = {**SMOOTH, **ROUGH}[kind]()
    for direction in DIMS:
        flushed, saturated = assert_holds(x, name, rule, direction)
        assert flushed.exact
        assert saturated.exact


@pytest.mark.parametrize("name", [n for n, f in BLOCK_FORMATS.items() if f.is_mx])
@pytest.mark.parametrize("rule", RULES)
def test_edge_mantissas_of_amax_and_element(name, rule):
    step = 2.0**-23
    edges = (1.0, 1.5, 1.75, 1.875, 1.9375, 1.984375, 1.9921875, 2 - step)
    mantissas = [m + d for m in edges for d in (-step, 0.0, step) if 1 <= m + d < 2]
    element = get_block_format(name).element
    depth = element.emax - int(math.log2(element.flush_threshold))
    rows = []
    for amax, x, d in product(mantissas, mantissas, (0, 1, depth - 1, depth, depth + 1)):
        if math.ldexp(x, -d) <= amax:
            rows.append([amax, -math.ldexp(x, -d)])
    x = torch.tensor(rows, dtype=torch.float32)
    flushed, saturated = assert_holds(x, name, rule, "last")
    if rule != "even" and name != "mxint8":
        assert flushed.exact
        assert saturated.exact


def test_even_is_bounded_by_the_blocks_whose_mantissa_is_cut_in_two():
    flushed, saturated = assert_holds(log_normal(6), "mxfp8", "even", "last")
    assert 0 < flushed.high - flushed.low < 0.01
    assert 0 < saturated.high - saturated.low < 0.05


@pytest.mark.parametrize("exponent", [-18.0, -18.7, -18.9, -20.0])
def test_nvfp4_blocks_below_2_to_the_minus_18_8_of_the_amax_vanish(exponent):
    x = torch.ones(2, 16) * torch.tensor([[1.0], [2.0**exponent]])
    flushed, _ = assert_holds(x, "nvfp4", None, "last")
    # Of the others amin or the binade alone tells on which side of the cut they are.
    assert flushed.exact == (exponent != -18.9)
    assert flushed.high == (0.5 if exponent < -18.8 else 0.0)


@pytest.mark.parametrize("exponent", range(-40, 41))
def test_nvfp4_ties_are_flushed_where_the_tensors_scale_is_a_power_of_two(exponent):
    x = torch.tensor([[2688.0, 112.0, 448.0]]) * 2.0**exponent
    stats, blocks = counted(x, "nvfp4", "last")
    truth, _ = true_shares(x, "nvfp4", None, -1)
    assert truth == 1 / 3
    for own in (blocks, None):
        flushed, _ = block_shares(stats, own, "nvfp4")
        assert flushed.low <= truth <= flushed.high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("top", [-139, -127, -126, -125, -123, -120, 127, 140])
def test_nvfp4_where_binades_end_and_depths_are_pooled(top, dtype):
    x = torch.rand(64, 48, dtype=torch.float64) + 1
    x *= torch.exp2(torch.randint(max(top - 12, -149), top + 1, x.shape).double())
    x = x.to(dtype)
    for direction in DIMS:
        assert_holds(x.where(x.isfinite(), 0), "nvfp4", None, direction)


@pytest.mark.parametrize("kind", ["gaussian", "2^2N", "outliers"])
def test_nvfp4_bounds_are_narrow_where_all_scales_are_normal(kind):
    flushed, saturated = assert_holds({**SMOOTH, **ROUGH}[kind](), "nvfp4", None, "last")
    # Between amax / 25.5 and amax / 22.67 lies a sixth of a binade.
    assert flushed.high - flushed.low < 0.03
    assert saturated.high < 0.15


@EVERY_CASE
@pytest.mark.parametrize("kind", SMOOTH)
def test_shares_of_smooth_distributions_are_close(kind, name, rule):
    if BLOCK_FORMATS[name].scale.name == "fp32":
        pytest.skip("bounds, not block counts, tell of blocks larger than any counted")
    x = SMOOTH[kind]()
    predicted = assert_holds(x, name, rule, "last")
    truth = true_shares(x, name, rule, -1)
    # NVFP4 and `even` place a cut within a class or a sixth of a binade.
    assert predicted[0].value == pytest.approx(truth[0], abs=0.003)
    assert predicted[1].value == pytest.approx(truth[1], abs=0.01)


@EVERY_CASE
@pytest.mark.parametrize("kind", ["gaussian", "2^1N", "2^2N"])
def test_median_relative_errors_of_smooth_distributions_are_close(kind, name, rule):
    x = SMOOTH[kind]()
    stats, blocks = counted(x, name, "last")
    median, _ = block_errors(stats, blocks, name, rule)
    assert median == pytest.approx(true_errors(x, name, rule)[0], rel=0.12)


@EVERY_CASE
def test_sqnr_of_a_gaussian_is_close(name, rule):
    x = torch.randn(512, 512)
    stats, blocks = counted(x, name, "last")
    _, sqnr = block_errors(stats, blocks, name, rule)
    assert sqnr == pytest.approx(true_errors(x, name, rule)[1], abs=0.4)


@pytest.mark.parametrize(
    ("name", "rule", "decibels"),
    [
        ("mxfp8-e4m3", "floor", 30.6),
        ("mxfp8-e4m3", "rceil", 31.5),
        ("mxfp8-e5m2", "floor", 25.4),
        ("mxfp8-e5m2", "rceil", 25.6),
        ("mxfp4", "floor", 18.8),
        ("nvfp4", None, 20.4),
    ],
)
def test_reference_figures_of_a_gaussian(name, rule, decibels):
    stats, blocks = counted(torch.randn(1024, 1024), name, "last")
    assert block_errors(stats, blocks, name, rule)[1] == pytest.approx(decibels, abs=0.5)


def test_merged_counts_answer_for_both_tensors():
    parts = [log_normal(4), log_normal(4) * 1e-3]
    rows = [tensor_stats(x, blocks=(16, 32)) for x in parts]
    merged = rows[0] + rows[1]
    for rule in RULES:
        share, _ = block_shares(merged, merged.blocks.of(32), "mxfp8", rule)
        lost = [
            true_shares(x, "mxfp8", rule, -1)[0] * r.nonzeros
            for x, r in zip(parts, rows, strict=True)
        ]
        assert share.low <= sum(lost) / merged.nonzeros <= share.high


def test_half_the_size_tells_how_block_fp8_goes_on():
    x = rows_of_all_sizes()
    stats, blocks = counted(x, "block-fp8-1x128", "last")
    truth, _ = true_shares(x, "block-fp8-1x128", None, -1)
    blind, _ = block_shares(stats, blocks, "block-fp8-1x128")
    told, _ = block_shares(stats, blocks, "block-fp8-1x128", half=stats.blocks.of(16))
    assert (told.low, told.high) == (blind.low, blind.high)
    assert abs(told.value - truth) <= abs(blind.value - truth) < 0.001


@EVERY_CASE
@pytest.mark.parametrize("kind", ["2^8N", "rows", "all zero", "huge"])
def test_without_counts_the_bounds_are_those_of_one_scale(kind, name, rule):
    x = ROUGH[kind]()
    stats = tensor_stats(x)
    for share, truth in zip(
        block_shares(stats, None, name, rule), true_shares(x, name, rule, -1), strict=True
    ):
        assert share.low <= truth <= share.high
    median, sqnr = block_errors(stats, None, name, rule)
    assert math.isnan(median) == math.isnan(sqnr) == (kind == "all zero")


def test_where_there_is_nothing_there_are_no_errors():
    stats, blocks = counted(torch.zeros(3, 3), "mxfp8", "last")
    for name in BLOCK_FORMATS:
        size = min(get_block_format(name).block[1], 32)
        assert all(map(math.isnan, block_errors(stats, stats.blocks.of(size), name)))
    assert block_shares(stats, blocks, "mxfp8")[0].high == 0.0


def test_counts_of_another_size_are_refused():
    stats = tensor_stats(torch.ones(4, 4), blocks=(16, 32))
    message = "nvfp4 is predicted from blocks of 16; got those of 32"
    for predict in (block_shares, block_errors):
        with pytest.raises(NumwatchError, match=message):
            predict(stats, stats.blocks.of(32), "nvfp4")
