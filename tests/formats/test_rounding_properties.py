"""The algebra of rounding: idempotence, monotonicity, sign symmetry, powers of two."""

import torch
from grids import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.formats import FORMATS, quantize, round_to_format

formats = st.sampled_from(sorted(FORMATS.values(), key=lambda fmt: fmt.bits))
signed_floats = st.sampled_from(
    [fmt for fmt in FORMATS.values() if fmt.signed and not fmt.is_integer]
)
fp32 = st.floats(width=32)
finite_fp32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
tensors = st.lists(fp32, max_size=20).map(lambda v: torch.tensor(v, dtype=torch.float32))
exponents = st.integers(-40, 40)
saturations = st.booleans()


@settings(deadline=None)
@given(tensors, formats, saturations)
def test_a_second_rounding_changes_nothing(x, fmt, saturate):
    once = quantize(x, fmt, saturate=saturate)
    assert_same(quantize(once, fmt, saturate=saturate), once)


@settings(deadline=None)
@given(st.lists(finite_fp32, min_size=2, max_size=20), formats)
def test_order_is_kept(numbers, fmt):
    x = torch.tensor(numbers, dtype=torch.float32)
    x = (x if fmt.signed else x.abs()).sort().values
    assert torch.all(quantize(x, fmt).diff() >= 0)


@settings(deadline=None)
@given(tensors, signed_floats, saturations)
def test_the_sign_does_not_matter(x, fmt, saturate):
    mirrored = -quantize(-x, fmt, saturate=saturate)
    if fmt.has_negative_zero:
        assert_same(mirrored, quantize(x, fmt, saturate=saturate))
    else:
        assert_same(mirrored + 0.0, quantize(x, fmt, saturate=saturate))


@settings(deadline=None)
@given(tensors, formats, exponents, exponents, saturations)
def test_a_power_of_two_moves_between_value_and_scale(x, fmt, k, scale_exponent, saturate):
    x, scale = x.double(), 2.0**scale_exponent
    here = round_to_format(x, fmt, scale=scale, saturate=saturate)
    there = round_to_format(x * 2.0**k, fmt, scale=scale / 2.0**k, saturate=saturate)
    assert torch.equal((here * 2.0**k).nan_to_num(7), there.nan_to_num(7))


@settings(deadline=None)
@given(tensors, formats, exponents, saturations)
def test_a_scale_is_a_multiplication_before_and_a_division_after(x, fmt, k, saturate):
    x, scale = x.double(), 2.0**k
    expected = quantize(x * scale, fmt, saturate=saturate)
    assert torch.equal(
        quantize(x, fmt, scale=scale, saturate=saturate).nan_to_num(7), expected.nan_to_num(7)
    )
    assert torch.equal(
        round_to_format(x, fmt, scale=scale, saturate=saturate).nan_to_num(7),
        (expected / scale).nan_to_num(7),
    )


@settings(deadline=None)
@given(tensors, formats, st.integers(0, 2**32))
def test_stochastic_rounding_is_nearest_rounding_on_the_grid(x, fmt, seed):
    grid = quantize(x, fmt)
    generator = torch.Generator().manual_seed(seed)
    assert_same(quantize(grid, fmt, rounding="stochastic", generator=generator), grid)


@settings(deadline=None)
@given(finite_fp32, signed_floats)
def test_the_error_of_a_normal_value_is_at_most_half_an_eps(number, fmt):
    x = torch.tensor(number, dtype=torch.float64)
    if fmt.smallest_normal <= abs(number) <= fmt.max:
        assert abs(quantize(x, fmt) - x) <= fmt.eps / 2 * abs(number)
