"""The adapter against counts taken from the Float8 tensors that torchao itself made in a step."""

import dataclasses
import math
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from versions import SCALED_MM

from numwatch.taps.float8 import float8_casts, is_float8_linear

torchao = pytest.importorskip("torchao.float8")

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
ML_DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def float8_linear(recipe, dtype=torch.bfloat16):
    config = torchao.Float8LinearConfig.from_recipe_name(recipe)
    config = dataclasses.replace(config, emulate=not SCALED_MM)
    linear = nn.Linear(32, 48, dtype=dtype)
    return torchao.convert_to_float8_training(linear, config=config)


def wide(*shape, binades=26, dtype=torch.bfloat16):
    """Log-uniform magnitudes over more binades than E4M3 has, with zeros of both signs."""
    x = torch.exp2(-torch.rand(shape) * binades) * torch.randn(shape).sign()
    x.view(-1)[:3] = torch.tensor([0.0, -0.0, 0.0])
    return x.to(dtype)


@pytest.fixture
def torchao_casts(monkeypatch):
    """Records the first (source, float8 tensor) that torchao's Linear makes of each role."""
    from torchao.float8 import float8_linear as library

    made = {}

    def spied(original):
        def spy(x, *args, gemm_input_role, **kwargs):
            cast = original(x, *args, gemm_input_role=gemm_input_role, **kwargs)
            made.setdefault(gemm_input_role.value, (x.detach().clone(), cast))
            return cast

        return spy

    # torchao 0.12 makes that of the weight by the other one.
    for name in ("hp_tensor_to_float8_dynamic", "hp_tensor_and_scale_to_float8"):
        if hasattr(library, name):
            monkeypatch.setattr(library, name, spied(getattr(library, name)))
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("recipe", RECIPES)
def test_agrees_with_what_torchao_made_in_the_step(recipe, dtype, torchao_casts):
    linear = float8_linear(recipe, dtype)
    with torch.no_grad():
        linear.weight.copy_(wide(48, 32))
    x = wide(4, 8, 32, dtype=dtype).requires_grad_()
    grad_output = wide(4, 8, 48, dtype=dtype, binades=40)
    linear(x).backward(grad_output)
    operands = {"input": x, "weight": linear.weight, "grad_output": grad_output}

    casts = float8_casts(linear)

    assert list(casts) == ["input", "weight", "grad_output"]
    for role in casts:
        source, made = torchao_casts[role]
        name, scale, flushed, saturated = casts[role](operands[role])
        # Counted from the bytes with ml_dtypes, by the contract's words alone.
        codes = made._data.contiguous().view(torch.uint8).numpy().view(ML_DTYPES[name])
        zeros_made = int((codes.astype(np.float64) == 0).sum())
        zeros_there = int((source.double().numpy() == 0).sum())
        assert flushed.item() == zeros_made - zeros_there, role
        assert flushed.item() > 0, role  # the data reach below every scale's cut
        assert saturated.item() == 0, role  # a scale from amax itself never saturates
        assert name == ("e5m2" if (recipe, role) == ("tensorwise", "grad_output") else "e4m3")
        if recipe == "tensorwise":
            torch.testing.assert_close(scale, made._scale, rtol=0, atol=0)
            amax = source.double().abs().max().item()
            assert scale.item() == np.float32(torch.finfo(made._data.dtype).max / amax)
        else:
            assert math.isnan(scale)


def test_tensorwise_scale_and_flushed_in_closed_form():
    cast = float8_casts(float8_linear("tensorwise"))["input"]
    # amax 448 makes the scale 1; E4M3 flushes up to 2^-10, the tie included.
    x = torch.tensor([448.0, 2**-9, 2**-10, 1.01 * 2**-10, 2**-20, 0.0, -0.0, -(2**-11)])
    name, scale, flushed, saturated = cast(x)
    assert (name, scale.item(), flushed.item(), saturated.item()) == ("e4m3", 1.0, 3, 0)


def test_rowwise_scales_each_row():
    # One scale would flush the second row whole; its own scale keeps it.
    x = torch.stack([torch.full((32,), 1.0), torch.full((32,), 2.0**-30)])
    assert float8_casts(float8_linear("tensorwise"))["input"](x)[2].item() == 32
    assert float8_casts(float8_linear("rowwise"))["input"](x)[2].item() == 0


def test_saturated_counts_what_a_floored_scale_leaves_above_the_maximum():
    # torchao clamps amax at 1e-12 and so never scales above max/1e-12: nothing saturates there
    # either. An amax whose scale rounds up must not be called saturated.
    cast = float8_casts(float8_linear("tensorwise"))["input"]
    for amax in torch.rand(500) * 100:
        assert cast(amax.reshape(1))[3].item() == 0


def test_an_infinite_amax_flushes_everything_finite():
    _, scale, flushed, _ = float8_casts(float8_linear("tensorwise"))["input"](
        torch.tensor([1.0, 2.0, math.inf, 0.0])
    )
    assert scale.item() == 0.0
    assert flushed.item() == 2


def test_waits_for_no_device(no_sync):
    x = wide(4, 32).requires_grad_()
    for recipe in RECIPES:
        for cast in float8_casts(float8_linear(recipe)).values():
            with no_sync():
                _, _, flushed, _ = cast(x)
            assert not flushed.requires_grad


def test_other_modules_have_none():
    class Float8Linear(nn.Linear):
        """Not torchao's."""

    for module in (nn.Linear(16, 16), Float8Linear(16, 16), nn.LayerNorm(4)):
        assert float8_casts(module) is None
        assert not is_float8_linear(module)
    assert is_float8_linear(float8_linear("rowwise"))


def test_casts_survive_pickling():
    cast = float8_casts(float8_linear("tensorwise"))["input"]
    x = wide(64)
    assert pickle.loads(pickle.dumps(cast))(x)[2] == cast(x)[2]


def test_imports_no_torchao_for_other_modules():
    code = (
        "import sys, torch; from numwatch.taps.float8 import float8_casts;"
        "assert float8_casts(torch.nn.Linear(2, 2)) is None;"
        "assert 'torchao' not in sys.modules and 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
