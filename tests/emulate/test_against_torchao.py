"""Emulation against torchao: the same bits where the arithmetic is the same."""

import dataclasses

import pytest
import torch
from emulate_builders import ROWWISE, operand, plan_for
from torch import nn
from versions import needs, needs_scaled_mm

from numwatch.callbacks.scaled_mm import without_onednn
from numwatch.emulate import emulate
from numwatch.formats import BLOCK_FORMATS, FORMATS
from numwatch.formats.fp32_blocks import round_blocks_fp32
from numwatch.formats.fp32_rounding import round_fp32
from numwatch.recipes.scaling import CurrentScaling

float8 = pytest.importorskip("torchao.float8")

TENSORWISE = (operand("e4m3"), operand("e4m3"), operand("e5m2"))
RECIPES = {"tensorwise": TENSORWISE, "rowwise": ROWWISE}
EPS = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
"""Half the distance from 1 to the next value: what one rounding costs."""


def make(dtype, bias, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 48, bias=bias, dtype=dtype))


def results(model, x, upstream, autocast):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.backward(upstream.to(y.dtype))
    return y.detach(), x.grad, model[0].weight.grad


def converted(model, recipe, *, emulated):
    config = float8.Float8LinearConfig.from_recipe_name(recipe)
    config = dataclasses.replace(config, emulate=emulated)
    return float8.convert_to_float8_training(model, config=config)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "emulated",
    [
        pytest.param(True, id="emulated"),
        pytest.param(False, id="scaled_mm", marks=needs_scaled_mm),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_float8_linear(recipe, bias, emulated, seed):
    """Forward, dgrad and wgrad of a BF16 Linear.

    torchao's emulation multiplies the dequantised operands in FP32 as ours does. The real product
    sums the quantised ones in another order and scales afterwards: K products, a scaling, and
    the rounding to BF16 of either.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp2(3 * torch.randn(32, 64, generator=generator))
    x = (torch.randn(32, 64, generator=generator) * spread).bfloat16()
    upstream = torch.randn(32, 48, generator=generator).bfloat16()
    ours, theirs = make(torch.bfloat16, bias, seed), make(torch.bfloat16, bias, seed)
    emulate(ours, plan_for(RECIPES[recipe], "0"))
    with without_onednn():  # whose kernel for E4M3 can be its reference
        expected = results(converted(theirs, recipe, emulated=emulated), x, upstream, False)
    found = results(ours, x, upstream, False)
    w = ours[0].weight.detach().float()
    magnitudes = (
        x.float().abs() @ w.abs().t(),
        upstream.float().abs() @ w.abs(),
        upstream.float().abs().t() @ x.float().abs(),
    )
    # The product is rounded before the bias is added, and may be larger than their sum.
    biases = (2 * ours[0].bias.detach().float().abs() if bias else 0.0, 0.0, 0.0)
    for one, other, magnitude, k, added in zip(
        found, expected, magnitudes, (64, 48, 32), biases, strict=True
    ):
        if emulated and recipe == "tensorwise":
            assert torch.equal(one, other)
        # Operands grow by at most 1/16 (E4M3) or 1/8 (E5M2) when they are rounded.
        bound = 1.2 * 1.2 * (k + 4) * EPS[torch.float32] * magnitude
        bound = bound + EPS[torch.bfloat16] * (3 * other.float().abs() + added)
        assert ((one.float() - other.float()).abs() <= bound).all()


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_casts_of_tensors_and_rows_are_the_same_bits(name, power_of_two, axis):
    from torchao.float8.config import ScalingGranularity
    from torchao.float8.float8_scaling_utils import LinearMMConfig, hp_tensor_to_float8_dynamic

    fmt = FORMATS[name]
    x = torch.randn(48, 64) * torch.exp2(5 * torch.randn(48, 64))
    rows = axis is not None
    theirs = hp_tensor_to_float8_dynamic(
        x,
        fmt.torch_dtype,
        LinearMMConfig(),
        scaling_granularity=ScalingGranularity.AXISWISE if rows else ScalingGranularity.TENSORWISE,
        axiswise_dim=axis,
        round_scales_to_power_of_2=power_of_two,
    )
    amax = x.abs().amax(axis, keepdim=True) if rows else x.abs().amax()
    scale, _ = CurrentScaling(power_of_two).step({}, amax, fmt)
    assert torch.equal(scale, theirs._scale)
    assert torch.equal(round_fp32(x * scale, fmt), theirs._data.float())


needs_dequantize = needs("torchao", "0.15", "dequantize(dtype) of a block format")
RULES = {"floor": "FLOOR", "ceil": "CEIL", "even": "EVEN", "rceil": "RCEIL"}


@needs_dequantize
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["mxfp8-e4m3", "mxfp8-e5m2", "mxfp4"])
def test_mx_casts_are_torchaos(name, rule):
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    fmt = BLOCK_FORMATS[name]
    x = (torch.randn(64, 128) * torch.exp2(4 * torch.randn(64, 128))).bfloat16()
    element = fmt.element.torch_dtype or torch.float4_e2m1fn_x2
    theirs = MXTensor.to_mx(
        x, element, block_size=32, scaling_mode=ScaleCalculationMode[RULES[rule]]
    ).dequantize(torch.float32)
    ours = round_blocks_fp32(x.float(), fmt, scale_rule=rule).values
    assert torch.equal(ours, theirs)


@needs_dequantize
def test_nvfp4_casts_are_torchaos_where_no_block_scale_is_tiny():
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x = torch.randn(64, 128)  # every block's amax is within 2^-6 of the largest
    scale = per_tensor_amax_to_scale(x.abs().amax())
    theirs = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(torch.float32)
    ours = round_blocks_fp32(x, BLOCK_FORMATS["nvfp4"]).values
    apart = (ours - theirs).abs() > 2.0**-21 * theirs.abs()
    assert not apart.any()
