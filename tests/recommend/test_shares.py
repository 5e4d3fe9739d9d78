"""All rows of an operand judged at once, beside each judged by itself."""

import warnings

import numpy as np
import pytest
import torch

from numwatch.formats import BLOCK_FORMATS, FORMATS
from numwatch.recipes.spec import parse_recipe
from numwatch.recommend.history import Rows
from numwatch.recommend.predict import predicted_shares
from numwatch.recommend.shares import shares_of_rows
from numwatch.stats import tensor_stats

WAYS = [
    *((name, recipe) for name in ("e4m3", "e5m2", "int8") for recipe in ("current", "rowwise")),
    ("e4m3", "current:power_of_two=true"),
    ("e4m3", "rowwise:power_of_two=true"),
    ("e4m3", "static:scale=64"),
    *((name, "mx:rule=rceil") for name in ("mxfp8-e4m3", "mxfp8-e5m2", "mxfp4", "mxint8")),
    ("mxfp4", "mx:rule=floor"),
    ("mxfp4", "mx:rule=even"),
    ("nvfp4", "nvfp4"),
    ("block-fp8-1x128", "block"),
    ("block-fp8-128x128", "block"),
]


def tensors():
    """Of many widths and scales, beyond the ends of FP32's normal range too."""
    generator = torch.Generator().manual_seed(1)
    for sigma in (0.5, 4.0, 12.0):
        z = sigma * torch.randn(3000, generator=generator, dtype=torch.float64)
        for center in (-150, -20, 0, 100):
            yield torch.exp2(z + center)
    yield torch.tensor([3.0])
    yield torch.tensor([2.0**-20, 1.0, 448.0])
    yield torch.tensor([1e-200, 1e200], dtype=torch.float64)


@pytest.mark.parametrize("length", [None, 1, 96])
@pytest.mark.parametrize(("name", "text"), WAYS)
def test_shares_of_many_rows_are_those_of_each(name, text, length):
    fmt, recipe = {**FORMATS, **BLOCK_FORMATS}[name], parse_recipe(text)
    stats = [tensor_stats(x) for x in tensors()]
    found = shares_of_rows(Rows.of(*stats), fmt, recipe, "last", length)
    for row, one in enumerate(stats):
        for share, expected in zip(
            found, predicted_shares(one, fmt, recipe, length=length), strict=True
        ):
            told = [expected.value, expected.low, expected.high]
            assert share[row].tolist() == pytest.approx(told, rel=1e-9, abs=1e-12), (row, one)


def test_a_format_without_zero_flushes_nothing_however_small():
    stats = tensor_stats(torch.tensor([5e-324], dtype=torch.float64))
    fmt, recipe = FORMATS["e8m0"], parse_recipe("static:scale=3e-39")
    found, _ = shares_of_rows(Rows.of(stats), fmt, recipe, "last", None)
    assert found.tolist() == [[0.0, 0.0, 0.0]]
    assert float(predicted_shares(stats, fmt, recipe).flushed) == 0.0


def test_amaxes_near_the_least_of_fp64_overflow_quietly():
    stats = tensor_stats(torch.tensor([1e-306, 1e-309], dtype=torch.float64))
    fmt = BLOCK_FORMATS["nvfp4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = shares_of_rows(Rows.of(stats), fmt, parse_recipe("nvfp4"), "last", None)
    one, _ = predicted_shares(stats, fmt, parse_recipe("nvfp4"))
    assert found.tolist() == [[one.value, one.low, one.high]]


def test_a_static_scale_is_meant_for_gradients_without_a_loss_scale():
    x = torch.exp2(torch.linspace(-12, 12, 999))
    rows = Rows.of(tensor_stats(1024 * x))
    scaled = Rows(**{**vars(rows), "loss_scale": np.array([1024.0])})
    recipe = parse_recipe("static:scale=0.25")
    plain = shares_of_rows(Rows.of(tensor_stats(x)), FORMATS["e4m3"], recipe, "last", None)
    found = shares_of_rows(scaled, FORMATS["e4m3"], recipe, "last", None)
    assert np.array_equal(found, plain)
    assert 0 < plain[0][0, 0] < 1


def test_a_delayed_scale_is_not_told_by_a_row_alone():
    rows = Rows.of(tensor_stats(torch.ones(3)))
    with pytest.raises(ValueError, match="delayed has no scale that this tensor alone tells"):
        shares_of_rows(rows, FORMATS["e4m3"], parse_recipe("delayed"), "last", None)


def test_some_rows_read_back_as_what_they_were_made_of():
    stats = [tensor_stats(x) for x in tensors()]
    rows = Rows.of(*stats).where(np.array([5, 1]))
    assert rows.elements.tolist() == [stats[5].nonzeros, stats[1].nonzeros]
    for row, at in enumerate((5, 1)):
        assert vars(rows.stats(row)) == {**vars(stats[at]), "dtype": None}
