"""Rounding in NumPy, for who reads records, beside rounding in torch, tried on every code."""

from typing import get_args

import numpy as np
import pytest
import torch

from numwatch.formats import FORMATS, RoundingError, ScaleRule, mx_scale_exponent, round_to_format
from numwatch.formats.mx_exponents import mx_exponents
from numwatch.formats.nearest import round_nearest

ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)


def every_sort():
    """Every BF16, its neighbours in FP64, and what BF16 has no exponent for."""
    codes = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).double().numpy()
    outside = np.array([5e-324, 1e-310, 2.0**-1022, 2.0**300, 1.7e308])
    with np.errstate(over="ignore"):
        return np.concatenate(
            [codes, np.nextafter(codes, np.inf), np.nextafter(codes, -np.inf), outside, -outside]
        )


@ALL
@pytest.mark.parametrize("scale", [1.0, 2.0**-9, 3.0])
def test_rounds_every_sort_of_number_as_the_one_for_tensors(fmt, scale):
    x = every_sort()
    theirs = round_to_format(torch.from_numpy(x), fmt, scale=scale).numpy()
    ours = round_nearest(x, fmt, scale)
    assert np.array_equal(ours, theirs, equal_nan=True)
    zero = ours == 0
    assert np.array_equal(np.signbit(ours[zero]), np.signbit(theirs[zero]))


@pytest.mark.parametrize("rule", get_args(ScaleRule))
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m3", "e2m1", "mxint8"])
def test_chooses_the_exponents_of_the_one_for_tensors(name, rule):
    amaxes = np.abs(every_sort())
    theirs = mx_scale_exponent(torch.from_numpy(amaxes), name, rule).numpy()
    assert np.array_equal(mx_exponents(amaxes, FORMATS[name], rule), theirs)


def test_refuses_a_rule_that_is_none():
    with pytest.raises(RoundingError, match="scale_rule is one of floor, ceil, even, rceil, got"):
        mx_exponents(np.ones(1), FORMATS["e4m3"], "round")
