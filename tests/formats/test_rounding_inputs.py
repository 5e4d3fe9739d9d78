"""Rounding takes any floating-point tensor, leaves it alone, and says what it cannot take."""

import re

import numpy as np
import pytest
import torch
from grids import assert_same, critical_inputs

from numwatch.errors import NumwatchError
from numwatch.formats import (
    BLOCK_FORMATS,
    FORMATS,
    RoundingError,
    quantize,
    round_to_block_format,
    round_to_format,
)

STORED = [fmt for fmt in FORMATS.values() if fmt.torch_dtype is not None and not fmt.is_integer]


@pytest.mark.parametrize("fmt", [f for f in STORED if f.bits <= 16], ids=lambda f: f.name)
def test_every_code_of_a_stored_dtype_is_a_fixed_point(fmt):
    codes = torch.arange(2**fmt.bits, dtype=torch.int32)
    x = codes.to(torch.uint8 if fmt.bits == 8 else torch.int16).view(fmt.torch_dtype)
    assert_same(round_to_format(x, fmt, saturate=False), x.float())


@pytest.mark.parametrize("dtype", [f.torch_dtype for f in STORED] + [torch.float64], ids=str)
def test_the_result_is_fp32_and_fp64_for_fp64(dtype):
    x = torch.tensor([0.5, 1.0, 2.0]).to(dtype)
    for function in (round_to_format, quantize):
        found = function(x, "e5m2")
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.tolist() == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_inputs_are_not_rounded_twice(dtype):
    x = critical_inputs(FORMATS["e4m3"]).to(dtype)
    found = round_to_format(x, "e4m3", scale=3.0)
    assert_same(found, round_to_format(x.double(), "e4m3", scale=3.0).float())


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(1.06),
        torch.empty(0),
        torch.empty(3, 0, 2),
        torch.randn(4, 6).t(),
        torch.randn(8, 6)[::2, 1::3],
        torch.randn(1, 5).expand(3, 5),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
    ids=["0-d", "empty", "empty 3-d", "transposed", "strided", "expanded", "channels last"],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_any_shape_and_layout(x, rounding):
    def rounded(values):
        generator = torch.Generator().manual_seed(0)
        return round_to_format(values, "e4m3", scale=2.0, rounding=rounding, generator=generator)

    before = x.clone()
    found = rounded(x)
    assert found.shape == x.shape
    assert torch.equal(x, before)
    if rounding == "nearest":
        assert_same(found, rounded(x.contiguous().flatten()).reshape(x.shape))


def test_the_result_is_detached_and_shares_no_memory():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for function in (round_to_format, quantize):
        found = function(x, "fp32")
        assert not found.requires_grad
        found.zero_()
    assert x.tolist() == [1.0, 2.0]
    scale = torch.tensor(2.0, requires_grad=True)
    assert not round_to_format(x, "e4m3", scale=scale).requires_grad


def test_one_scale_a_row_is_each_row_at_its_scale():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    scale = 448 / x.abs().amax(dim=1, keepdim=True)
    for function in (round_to_format, quantize):
        expected = [function(row, "e4m3", scale=s.item()) for row, s in zip(x, scale, strict=True)]
        assert_same(function(x, "e4m3", scale=scale), torch.stack(expected))


def test_dequantised_is_the_grid_value_over_the_scale():
    x, scale = torch.linspace(-3, 3, 1001), 448 / 3
    grid = quantize(x, "e4m3", scale=scale)
    assert grid.abs().max() == 448
    expected = (grid.double() / scale).float()
    assert_same(round_to_format(x, "e4m3", scale=scale), expected)


@pytest.mark.parametrize("exponent", [-100, -1, 0, 7, 100])
def test_fp32_range_scales_lose_nothing(exponent):
    x = critical_inputs(FORMATS["e5m2"]).double()
    scale = 2.0**exponent
    found = quantize((x / scale), "e5m2", scale=scale, saturate=False)
    assert torch.equal(found.nan_to_num(7), quantize(x, "e5m2", saturate=False).nan_to_num(7))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_nothing_waits_for_the_device(no_sync, rounding):
    x, scale = torch.randn(4, 64), torch.tensor(2.0)
    with no_sync():
        for name in FORMATS:
            round_to_format(x, name, scale=scale, rounding=rounding, saturate=False)
        for name in BLOCK_FORMATS:
            round_to_block_format(x, name, rounding=rounding)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_rounds_as_a_cpu_does():
    for fmt in FORMATS.values():
        x = critical_inputs(fmt if fmt.bits <= 16 else FORMATS["bf16"])
        on_gpu = quantize(x.cuda(), fmt, scale=torch.tensor(1.5), saturate=False).cpu()
        assert_same(on_gpu, quantize(x, fmt, scale=1.5, saturate=False))
    x = critical_inputs(FORMATS["fp16"])
    for name in BLOCK_FORMATS:
        on_gpu = round_to_block_format(x.cuda(), name).cpu()
        assert_same(on_gpu, round_to_block_format(x, name))


@pytest.mark.parametrize(
    "function", [round_to_format, quantize], ids=["round_to_format", "quantize"]
)
def test_what_cannot_be_rounded_is_said(function):
    x = torch.ones(3)
    for wrong in (torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(RoundingError, match=f"floating-point tensor, got {wrong.dtype}"):
            function(wrong, "e4m3")
    for scale in (0.0, -1.0, np.inf, np.nan):
        text = f"a scale is positive and finite, got {scale}"
        with pytest.raises(RoundingError, match=re.escape(text)):
            function(x, "e4m3", scale=scale)
    with pytest.raises(RoundingError, match="'nearest' or 'stochastic', got 'up'"):
        function(x, "e4m3", rounding="up")
    assert issubclass(RoundingError, NumwatchError)
