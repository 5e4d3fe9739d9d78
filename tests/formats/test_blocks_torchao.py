"""Block formats against torchao's casts and, for MXINT8, which torchao has not, gfloat's."""

import gfloat.block
import gfloat.formats
import numpy as np
import pytest
import torch
from grids import assert_same
from torchao.prototype.mx_formats import config
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

from numwatch.formats import mx_scale_exponent, quantize, round_to_block_format

if not hasattr(config, "ScaleCalculationMode"):
    pytest.skip("this torchao knows one scale rule only", allow_module_level=True)
ScaleCalculationMode = config.ScaleCalculationMode

RULES = {
    "floor": ScaleCalculationMode.FLOOR,
    "ceil": ScaleCalculationMode.CEIL,
    "even": ScaleCalculationMode.EVEN,
    "rceil": ScaleCalculationMode.RCEIL,
}
ELEMENTS = {
    "mxfp8-e4m3": ("e4m3", torch.float8_e4m3fn),
    "mxfp8-e5m2": ("e5m2", torch.float8_e5m2),
    "mxfp6-e3m2": ("e3m2", "fp6_e3m2"),
    "mxfp6-e2m3": ("e2m3", "fp6_e2m3"),
    "mxfp4": ("e2m1", getattr(torch, "float4_e2m1fn_x2", None)),
}


def generator():
    return torch.Generator().manual_seed(0)


def wide(dtype):
    """Returns blocks whose amaxes lie over 120 binades and whose elements lie over 30 more."""
    x = torch.randn(1024, 64, generator=generator())
    spread = torch.randn(1024, 64, generator=generator()) * 6
    level = torch.linspace(-60, 60, 1024)[:, None]
    return (x * torch.exp2(spread.clamp(-15, 15) + level.round())).to(dtype)


def edges():
    """Returns blocks whose amax has each of 4096 mantissas, with exact ties among the elements."""
    amax = 1 + torch.arange(4096) / 4096
    x = torch.arange(32) / 16
    x = x.repeat(4096, 1) - 1.0
    x[:, 0] = amax
    return x


def torchao_mx(x, element, rule):
    scale, data = to_mx(x, element, 32, RULES[rule])
    return to_dtype(data, scale, element, 32, torch.float32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mx_agrees_with_torchao(name, rule, dtype):
    element = ELEMENTS[name][1]
    for x in (wide(dtype), edges().to(dtype)):
        found = round_to_block_format(x, name, scale_rule=rule)
        assert_same(found, torchao_mx(x, element, rule))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_special_values_agree_with_torchao(name, rule):
    x = torch.randn(5, 32, generator=generator())
    x[0] = 0
    x[1, 3], x[1, 4] = 0.0, -0.0
    x[2, 5] = torch.nan
    x[3, 6], x[3, 7] = torch.inf, -torch.inf
    x[4, 8] = 3e38
    found = round_to_block_format(x, name, scale_rule=rule)
    assert_same(found, torchao_mx(x, ELEMENTS[name][1], rule))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_exponents_agree_with_torchao_over_all_binades_of_fp32(name, rule):
    fmt, element = ELEMENTS[name]
    mantissas = torch.tensor([1, 1.2, 1.25, 1.5, 1.51, 1.75, 1.76, 1.875, 1.88, 1.9375, 1.94, 1.99])
    binades = torch.exp2(torch.arange(-126.0, 128))
    amax = torch.outer(binades, mantissas).flatten()
    x = torch.zeros(amax.numel(), 32)
    x[:, 0] = amax
    scale, _ = to_mx(x, element, 32, RULES[rule])
    expected = scale.view(torch.uint8).flatten().int() - 127
    assert torch.equal(mx_scale_exponent(amax, fmt, rule), expected)


def test_mxint8_agrees_with_gfloat():
    x = torch.randn(64, 32, generator=generator()) * torch.exp2(torch.arange(-32.0, 32))[:, None]
    x[0] = torch.arange(32) / 128 * 2.0**-20
    block = gfloat.formats.format_info_mxint8
    expected = [
        gfloat.block.quantize_block(block, row, gfloat.block.compute_scale_amax)
        for row in x.double().numpy()
    ]
    found = round_to_block_format(x, "mxint8", scale_rule="floor")
    assert_same(found, torch.from_numpy(np.stack(expected)))


def near_a_midpoint(x, fmt):
    """Whether FP32 rounding on the way (torchao's) could decide which neighbour `x` goes to."""
    return quantize(x * (1 - 1e-6), fmt) != quantize(x * (1 + 1e-6), fmt)


@pytest.mark.parametrize("tensor_amax", [2688 / 2**9, 5.0], ids=["power-of-two scale", "any scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nvfp4_agrees_with_torchao(dtype, tensor_amax):
    # Blocks above 2^-12 of the largest: below, torchao holds block scales at 2^-6, against
    # arXiv:2509.25149 and Transformer Engine, where they go on to 2^-9 and then to 0.
    level = torch.exp2(torch.linspace(-10, 0, 512))[:, None]
    x = (torch.randn(512, 64, generator=generator()).clamp(-3, 3) * level).to(dtype)
    x[0, 0] = tensor_amax
    theirs = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max()))

    blocks = x.double().reshape(512, 4, 16)
    encode = float(torch.tensor(2688.0) / tensor_amax)
    exact_scale = blocks.abs().amax(dim=-1, keepdim=True) * encode / 6
    scaled = blocks * encode / quantize(exact_scale, "e4m3")
    undecided = near_a_midpoint(exact_scale, "e4m3") | near_a_midpoint(scaled, "e2m1")
    decided = ~undecided.reshape(x.shape)
    assert decided.double().mean() > 0.9

    found, expected = round_to_block_format(x, "nvfp4"), theirs.dequantize(torch.float32)
    # theirs multiplies by an FP32 scale, which is exact only where the tensor's is.
    tolerance = 0 if tensor_amax != 5.0 else 2**-22
    torch.testing.assert_close(found[decided], expected[decided], rtol=tolerance, atol=0)
