"""Block scaling: the vectors and closed forms of the papers, and what a block does to its like."""

import itertools
import math

import pytest
import torch
from grids import assert_same

from numwatch.formats import (
    BLOCK_FORMATS,
    RoundingError,
    UnknownFormatError,
    mx_scale_exponent,
    quantize,
    round_to_block_format,
    round_to_format,
)

RULES = ("floor", "ceil", "even", "rceil")
MX = [name for name, fmt in BLOCK_FORMATS.items() if fmt.is_mx]
MX_CASES = list(itertools.product(MX, RULES))
ALL_CASES = MX_CASES + [(name, None) for name in BLOCK_FORMATS if name not in MX]

# element, amax: exponents by floor, ceil, even, rceil
EXPONENTS = {
    ("e4m3", 256.0): (0, 0, 0, 0),
    ("e4m3", 448.0): (0, 1, 0, 0),
    ("e4m3", 449.0): (0, 1, 0, 1),
    ("e4m3", 480.0): (0, 1, 0, 1),
    ("e4m3", 500.0): (0, 1, 1, 1),
    ("e4m3", 225.0): (-1, 0, -1, 0),
    ("e4m3", 240.0): (-1, 0, -1, 0),
    ("e2m1", 6.0): (0, 1, 0, 0),
    ("e2m1", 6.5): (0, 1, 0, 1),
    ("e2m1", 7.0): (0, 1, 1, 1),
    ("e2m1", 1.6): (-2, -1, -2, -1),
    ("e5m2", 60000.0): (0, 1, 0, 1),
    ("e5m2", 65504.0): (0, 1, 1, 1),
    ("mxint8", 1.0): (0, 0, 0, 0),
    ("mxint8", 1 + 63 / 64): (0, 1, 0, 0),
    ("mxint8", 1.99): (0, 1, 0, 1),
    ("mxint8", 1 + 127 / 128): (0, 1, 1, 1),
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sqnr(x, rounded):
    noise = (x.double() - rounded.double()).square().sum()
    return (10 * torch.log10(x.double().square().sum() / noise)).item()


@pytest.mark.parametrize(("element", "amax"), EXPONENTS)
def test_mx_exponents(element, amax):
    found = [mx_scale_exponent(torch.tensor(amax), element, rule) for rule in RULES]
    assert [e.item() for e in found] == list(EXPONENTS[element, amax])
    assert all(e.dtype == torch.int32 for e in found)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MX)
def test_mx_exponents_shift_with_the_amax(name, rule):
    element = BLOCK_FORMATS[name].element
    mantissas = 1 + torch.arange(1024, dtype=torch.float64) / 1024
    at_one = mx_scale_exponent(mantissas, element, rule)
    for shift in (-100, -1, 1, 100):
        assert torch.equal(mx_scale_exponent(mantissas * 2.0**shift, element, rule), at_one + shift)


@pytest.mark.parametrize("name", MX)
def test_rceil_is_the_least_exponent_that_clips_nothing(name):
    element = BLOCK_FORMATS[name].element
    amax = torch.exp2(torch.linspace(-30, 30, 6001, dtype=torch.float64))
    amax = torch.cat([amax, element.max * torch.exp2(torch.arange(-5.0, 6).double())])
    scale = torch.exp2(mx_scale_exponent(amax, element, "rceil").double())
    assert torch.all(element.max * scale >= amax)
    assert torch.all(element.max * scale / 2 < amax)


def test_floor_clips_what_the_mantissa_of_the_largest_value_says():
    amax = torch.exp2(torch.arange(100_000, dtype=torch.float64) / 100_000)
    scale = torch.exp2(mx_scale_exponent(amax, "e4m3", "floor").double())
    clipped = (amax / scale > 448).double().mean().item()
    assert clipped == pytest.approx(math.log2(2 / 1.75), abs=2e-5)  # 19.3 % of log-uniform amaxes


@pytest.mark.parametrize("rule", RULES)
def test_mx_exponents_at_the_ends_of_e8m0(rule):
    amax = torch.tensor([0.0, 2.0**-149, 2.0**-130, torch.nan])
    assert mx_scale_exponent(amax, "e4m3", rule).tolist() == [-127, -127, -127, 128]
    infinite = mx_scale_exponent(torch.tensor(torch.inf), "e4m3", rule).item()
    assert infinite == (127 if rule == "rceil" else 120)
    huge = torch.tensor([3e38, 1e300], dtype=torch.float64)
    assert torch.all(mx_scale_exponent(huge, "mxint8", rule) >= 127)


def test_layernorm_gains_collapse_under_floor():
    gains = torch.linspace(0.90625, 1.0, 32)
    gains[0] = torch.nextafter(gains[0], torch.tensor(1.0))
    gains[-1] = torch.nextafter(gains[-1], torch.tensor(0.0))
    floor = round_to_block_format(gains, "mxfp8-e4m3", scale_rule="floor")
    rceil = round_to_block_format(gains, "mxfp8-e4m3", scale_rule="rceil")
    assert torch.all(floor == 0.875)
    assert set(rceil.tolist()) == {0.9375, 1.0}
    error = [((rounded - gains).abs() / gains).max().item() for rounded in (floor, rceil)]
    assert error == pytest.approx([1 / 8, 1 / 32 / 0.90625], rel=1e-5)  # 12.5 %, 3.4 %


def test_an_nvfp4_block_too_far_below_the_tensors_amax_vanishes():
    tensor_amax = torch.tensor(448 * 6 / 2**11)  # the tensor's scale is 2^11
    cut = torch.tensor(6 * 2.0**-10 / 2**11)  # the block's scale is half of E4M3's smallest value
    assert math.log2(cut / tensor_amax) == pytest.approx(-18.8, abs=0.01)
    amaxes = torch.stack([tensor_amax, cut, torch.nextafter(cut, tensor_amax)])
    found = round_to_block_format(amaxes[:, None].expand(3, 16), "nvfp4")
    assert torch.all(found[0] == tensor_amax)
    assert torch.all(found[1] == 0)
    assert torch.all(found[2] != 0)


def test_nvfp4_by_its_formulas():
    x = randn(64, 48)
    encode = torch.tensor(448.0 * 6) / x.abs().max()
    expected = torch.empty_like(x)
    for row, start in itertools.product(range(64), range(0, 48, 16)):
        block = x[row, start : start + 16].double()
        scale = quantize(block.abs().max() * encode / 6, "e4m3")
        element = quantize(block * encode / scale, "e2m1")
        expected[row, start : start + 16] = (element * scale / encode).float()
    assert_same(round_to_block_format(x, "nvfp4"), expected)


@pytest.mark.parametrize(("name", "shape"), [("1x128", (1, 128)), ("128x128", (128, 128))])
def test_block_fp8_is_tensor_scaling_of_each_block(name, shape):
    x = randn(256, 384) * torch.exp2(4 * randn(256, 384, seed=1))
    found = round_to_block_format(x, f"block-fp8-{name}")
    rows, columns = shape
    for top, left in itertools.product(range(0, 256, rows), range(0, 384, columns)):
        here = (slice(top, top + rows), slice(left, left + columns))
        exponent = math.floor(math.log2(448 / x[here].abs().max().item()))
        assert_same(found[here], round_to_format(x[here], "e4m3", scale=2.0**exponent))


@pytest.mark.parametrize(("name", "rule"), MX_CASES)
def test_mx_is_tensor_scaling_of_each_block(name, rule):
    x = randn(8, 64) * torch.exp2(6 * randn(8, 64, seed=1))
    element = BLOCK_FORMATS[name].element
    found = round_to_block_format(x, name, scale_rule=rule)
    for row, start in itertools.product(range(8), (0, 32)):
        block = x[row, start : start + 32]
        exponent = mx_scale_exponent(block.abs().max(), element, rule).item()
        expected = round_to_format(block, element, scale=2.0**-exponent)
        assert_same(found[row, start : start + 32], expected)


def test_the_default_scale_rule_is_floor():
    x = randn(4, 64)
    for name in MX:
        floor = round_to_block_format(x, name, scale_rule="floor")
        assert_same(round_to_block_format(x, name), floor)


def test_sqnr_of_a_normal_distribution():
    """The table of `facts`, N(0, 1), a million values, within 0.3 dB."""
    x = randn(1000, 1024)
    amax = x.abs().max()
    by_tensor = {"fp16": 73.7, "bf16": 55.6}
    by_amax = {"int8": (39.1, 127), "e4m3": (31.5, 448), "e5m2": (25.6, 57344)}
    by_block = {
        ("mxfp8-e4m3", "floor"): 30.6,
        ("mxfp8-e4m3", "rceil"): 31.5,
        ("mxfp8-e5m2", "floor"): 25.4,
        ("mxfp8-e5m2", "rceil"): 25.6,
        ("mxfp4", "floor"): 18.8,
        ("nvfp4", None): 20.4,
    }
    for name, expected in by_tensor.items():
        assert sqnr(x, round_to_format(x, name)) == pytest.approx(expected, abs=0.3)
    for name, (expected, largest) in by_amax.items():
        rounded = round_to_format(x, name, scale=largest / amax)
        assert sqnr(x, rounded) == pytest.approx(expected, abs=0.3)
    for (name, rule), expected in by_block.items():
        rounded = round_to_block_format(x, name, scale_rule=rule)
        assert sqnr(x, rounded) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("name", "rule"), ALL_CASES)
def test_a_ragged_block_is_one_filled_up_with_zeros(name, rule):
    x = randn(130, 150)
    height, width = BLOCK_FORMATS[name].block
    padding = (0, -150 % width, 0, -130 % height)
    whole = round_to_block_format(torch.nn.functional.pad(x, padding), name, scale_rule=rule)
    assert_same(round_to_block_format(x, name, scale_rule=rule), whole[:130, :150])


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_any_dimension_shape_and_layout(name):
    x = randn(4, 6, 40)
    expected = round_to_block_format(x, name)
    assert_same(round_to_block_format(x.transpose(0, 2), name, dim=0), expected.transpose(0, 2))
    assert_same(round_to_block_format(x.reshape(24, 40), name), expected.reshape(24, 40))
    assert_same(round_to_block_format(x.movedim(-1, 1), name, dim=1), expected.movedim(-1, 1))
    assert round_to_block_format(torch.tensor(6.0), name).shape == ()
    assert round_to_block_format(torch.tensor(6.0), name).item() == 6.0
    for shape in ((0,), (3, 0), (0, 3)):
        assert round_to_block_format(torch.empty(shape), name).shape == shape


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_dtypes(name):
    x = randn(4, 32).bfloat16().requires_grad_()
    found = round_to_block_format(x, name)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    in_fp64 = round_to_block_format(x.double(), name)
    assert in_fp64.dtype == torch.float64
    assert_same(in_fp64.float(), found)


@pytest.mark.parametrize(("name", "rule"), ALL_CASES)
def test_zeros_stay_zeros(name, rule):
    x = randn(4, 256)
    x[1] = 0
    found = round_to_block_format(x, name, scale_rule=rule)
    assert torch.all(found[1] == 0)
    assert torch.all(round_to_block_format(torch.zeros(4, 256), name, scale_rule=rule) == 0)


@pytest.mark.parametrize(("name", "rule"), ALL_CASES)
def test_nan_takes_its_block_and_no_other(name, rule):
    x = randn(256, 256)
    height, width = BLOCK_FORMATS[name].block
    clean = round_to_block_format(x, name, scale_rule=rule)
    x[0, 0], x[0, 1] = torch.nan, x[0, 1] / 1000
    found = round_to_block_format(x, name, scale_rule=rule)
    taken = torch.zeros(256, 256, dtype=torch.bool)
    taken[:height, :width] = True
    assert found[taken].isnan().all()
    assert_same(found[~taken], clean[~taken])


@pytest.mark.parametrize("name", ["nvfp4", "block-fp8-1x128"])
def test_an_infinite_amax_turns_the_scale_off(name):
    fmt = BLOCK_FORMATS[name]
    x = torch.zeros(fmt.block_size)
    x[0], x[1] = torch.inf, 6.0
    found = round_to_block_format(x, name)
    largest = fmt.element.max * (fmt.scale.max if fmt.tensor_scale else 1)
    assert found[0] == largest
    assert found[1] == (0.0 if fmt.tensor_scale else 6.0)


def test_stochastic_rounding_of_a_block_is_unbiased_below_its_amax():
    x = torch.full((10_000, 32), 1.3)
    x[:, 0] = 4.0
    generator = torch.Generator().manual_seed(0)
    found = round_to_block_format(x, "mxfp4", rounding="stochastic", generator=generator)
    assert set(found[:, 1:].unique().tolist()) == {1.0, 1.5}
    assert torch.all(found[:, 0] == 4.0)
    draws = 10_000 * 31
    deviation = 0.5 * math.sqrt(0.6 * 0.4 / draws)
    assert found[:, 1:].double().mean().item() == pytest.approx(1.3, abs=5 * deviation)


def test_what_cannot_be_rounded_is_said():
    x = torch.ones(32)
    with pytest.raises(UnknownFormatError, match="unknown block format 'e4m3'"):
        round_to_block_format(x, "e4m3")
    with pytest.raises(RoundingError, match="scale_rule is for MX formats; nvfp4 has"):
        round_to_block_format(x, "nvfp4", scale_rule="floor")
    with pytest.raises(RoundingError, match="one of floor, ceil, even, rceil, got 'round'"):
        round_to_block_format(x, "mxfp4", scale_rule="round")
    with pytest.raises(RoundingError, match=r"floating-point tensor, got torch.int32"):
        round_to_block_format(x.int(), "mxfp4")
