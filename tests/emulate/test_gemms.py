"""The three GEMMs of an emulated Linear, against each written out."""

import pytest
import torch
from emulate_builders import DELAYED, FP8, RECIPES, Net, fit, operand, plan_for, triple
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import numwatch
from numwatch.callbacks import EmulatePrecision, NumericsMonitor
from numwatch.emulate import EmulatedLinear, emulate
from numwatch.emulate.hadamard import transform_rows
from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS, round_to_block_format, round_to_format
from numwatch.plan import ModulePlan, Plan
from numwatch.recipes.scaling import CurrentScaling
from numwatch.recipes.stepping import scales_over
from numwatch.report.summary import summarize


def linear(width=64, out=48, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, out, bias=bias))


def gradients(model, x, upstream):
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(upstream)
    return y.detach(), x.grad, model[0].weight.grad.clone()


def tensors(n=32, width=64, out=48, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator), torch.randn(n, out, generator=generator)


def current(x, name):
    fmt = FORMATS[name]
    scale, _ = CurrentScaling().step({}, x.abs().max(), fmt)
    # Scaled in FP32, as the libraries do; the division is exact enough to be compared closely.
    return round_to_format(x * scale, fmt).div(scale)


def test_tensorwise_rounds_each_operand_once():
    model, (x, g) = linear(), tensors()
    w, bias = model[0].weight.detach(), model[0].bias.detach()
    qx, qw, qg = current(x, "e4m3"), current(w, "e4m3"), current(g, "e5m2")
    with emulate(model, plan_for(FP8, "0")):
        y, dx, dw = gradients(model, x, g)
    assert torch.equal(y, qx @ qw.t() + bias)
    assert torch.equal(dx, qg @ qw)
    assert torch.equal(dw, qg.t() @ qx)
    assert torch.equal(model[0].bias.grad, g.sum(0))


@pytest.mark.parametrize("fmt", ["mxfp8-e4m3", "mxfp4"])
def test_blocks_run_along_what_each_gemm_reduces(fmt):
    model, (x, g) = linear(), tensors()
    w = model[0].weight.detach()

    def q(matrix, dim):
        return round_to_block_format(matrix, fmt, dim=dim, scale_rule="rceil")

    with emulate(model, plan_for([operand(fmt, "mx:rule=rceil")], "0")):
        y, dx, dw = gradients(model, x, g)
    assert torch.equal(y, q(x, 1) @ q(w, 1).t() + model[0].bias.detach())
    assert torch.equal(dx, q(g, 1) @ q(w, 0))
    assert torch.equal(dw, q(g, 0).t() @ q(x, 0))


def test_operands_without_a_plan_are_left_alone():
    model, (x, g) = linear(), tensors()
    w = model[0].weight.detach()
    plan = Plan("fp8", modules=(ModulePlan("0", {"grad_output": operand("e5m2")}),))
    with emulate(model, plan):
        y, dx, dw = gradients(model, x, g)
    qg = current(g, "e5m2")
    assert torch.equal(y, (x @ w.t()) + model[0].bias.detach())
    assert torch.equal(dx, qg @ w)
    assert torch.equal(dw, qg.t() @ x)


def test_saturated_elements_pass_their_gradient_on():
    model, (x, g) = linear(), tensors()
    x[:, :8] *= 1e6
    loud = operand("e4m3", "static:scale=1")
    plan = Plan("fp8", modules=(ModulePlan("0", {"input": loud}),))
    with emulate(model, plan):
        _, dx, _ = gradients(model, x, g)
    assert torch.equal(dx, g @ model[0].weight.detach())


def test_hadamard_cancels_where_nothing_is_rounded():
    x, g = tensors(40)
    transformed = transform_rows(g, 7).t() @ transform_rows(x, 7)
    # Two transforms of 16 additions, and products of 48: FP32's rounding of each, at most.
    bound = (2 * 16 + 48) * 2.0**-24 * (g.abs().t().sum(1, keepdim=True) * x.abs().amax(0))
    assert ((transformed - g.t() @ x).abs() <= bound).all()
    assert not torch.allclose(transform_rows(x, 7)[:40], x)


def test_hadamard_of_one_operand_alone_is_refused():
    rotated = operand("nvfp4", "nvfp4:hadamard=true")
    plan = Plan("nvfp4", modules=(ModulePlan("0", {"input": rotated}),))
    with pytest.raises(NumwatchError, match="cancels only where both operands"):
        emulate(linear(), plan)


def test_delayed_scales_are_those_of_the_recipe():
    model, g = linear(), tensors()[1]
    amaxes, scales = [], []
    with emulate(model, plan_for(DELAYED, "0")) as emulation:
        keeper = emulation.modules["0"].rounding.keepers["input"]
        for step in range(9):
            x = tensors()[0] * 2.0 ** (step * 7 % 5)
            amaxes.append(x.abs().max())
            gradients(model, x, g)
            scales.append(keeper.scale_of(x, past=True))
    recipe = DELAYED[0].recipe
    assert torch.equal(
        torch.stack(scales), scales_over(recipe, torch.stack(amaxes), FORMATS["e4m3"])
    )


def test_neither_evaluation_nor_a_checkpoint_advances_a_history():
    (x, g) = tensors()
    states = []
    for wrapped in (False, True):
        model = linear()
        with emulate(model, plan_for(DELAYED, "0")) as emulation:
            for _ in range(3):
                x = x.clone().requires_grad_()
                forward = model[0]
                y = checkpoint(forward, x, use_reentrant=False) if wrapped else forward(x)
                y.backward(g)
                model.eval()
                with torch.no_grad():
                    model(100 * x)
                model.train()
            states.append((emulation.state_dict(), model[0].weight.grad.clone()))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_state_dict_hooks_and_modules_stay(recipe):
    model = Net()
    modules, keys = list(model.modules()), list(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    seen = []
    handle = model.fc1.register_forward_hook(lambda *_: seen.append(1))
    with emulate(model, plan_for(RECIPES[recipe], "fc1", "fc2", "head")):
        assert list(model.state_dict()) == keys
        model(torch.randn(4, 32))
    handle.remove()
    assert seen
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.modules()) == modules
    assert not any(isinstance(module, EmulatedLinear) for module in model.modules())
    assert not hasattr(model.fc1, "rounding")


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_waits_for_the_device(recipe, no_sync):
    model, (x, g) = linear(), tensors()
    with emulate(model, plan_for(RECIPES[recipe], "0")), no_sync():
        for _ in range(2):
            y = model(x.requires_grad_())
            y.backward(g)


def test_random_numbers_of_the_training_are_left_alone():
    def dropped(*callbacks):
        torch.manual_seed(0)
        model = Net(dropout=0.5)
        masks = []
        model.dropout.register_forward_hook(lambda _, x, y: masks.append((y == 0) & (x[0] != 0)))
        fit(model, *callbacks, steps=4)
        return masks[0]

    # The first step's masks: later ones see other activations.
    plan = plan_for(RECIPES["nvfp4"], "fc2", "head")
    assert torch.equal(dropped(), dropped(EmulatePrecision(plan)))


def test_a_plan_that_keeps_all_changes_no_bit():
    def trained(*callbacks):
        torch.manual_seed(0)
        model = Net(dropout=0.3)
        fit(model, *callbacks, steps=4)
        return model.state_dict()

    kept = Plan("fp8", modules=(ModulePlan("fc1", reason="kept"), ModulePlan("head")))
    torch.testing.assert_close(trained(EmulatePrecision(kept)), trained(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_the_record_holds_the_casts_of_each_precision(precision, tmp_path):
    torch.manual_seed(0)
    model = Net()
    plan = Plan("fp8", modules=(triple("fc1", *FP8), triple("fc2", *RECIPES["nvfp4"])))
    monitor = NumericsMonitor(1, dir=str(tmp_path), summary=False, strict=True)
    fit(model, EmulatePrecision(plan), monitor, steps=3, precision=precision)
    run = numwatch.open_run(tmp_path)
    assert "emulated" in run.precision
    rows = run.tensors("fc1:input")
    assert set(rows["cast_format"].to_pylist()) == {"e4m3"}
    for row in rows.to_pylist():
        # Autocast takes the FP32 input that was seen to BF16 first.
        amax = torch.tensor(row["amax"]).bfloat16().float()
        amax = torch.tensor(row["amax"]) if precision == "32-true" else amax
        assert row["cast_scale"] == CurrentScaling().step({}, amax, FORMATS["e4m3"])[0].item()
        assert row["cast_saturated"] == 0
    flushed = run.tensors("fc2:input").to_pylist()
    assert {row["cast_format"] for row in flushed} == {"nvfp4"}
    assert all(0 < row["cast_flushed"] < row["numel"] for row in flushed)
    assert numwatch.diagnose(run) is not None


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(list(RECIPES)), st.sampled_from([1, 2, 17, 33]), st.sampled_from([1, 30, 65])
)
def test_any_shape_trains(recipe, n, width):
    model = nn.Sequential(nn.Linear(width, 19))
    with emulate(model, plan_for(RECIPES[recipe], "0")):
        y = model(torch.randn(2, n, width, requires_grad=True))
        y.square().mean().backward()
    assert y.shape == (2, n, 19)
    assert torch.isfinite(model[0].weight.grad).all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_not_finite_is_not_hidden(recipe, value):
    """A saturated infinity would hide an overflow from a gradient scaler."""
    model, (x, g) = linear(bias=False), tensors()
    g[3, 5] = value
    with emulate(model, plan_for(RECIPES[recipe], "0")):
        _, dx, dw = gradients(model, x, g)
    assert not dx[3].isfinite().any()
    assert not dw[5].isfinite().any()
    x[0, 0] = value
    with emulate(model, plan_for(RECIPES[recipe], "0")):
        assert not model(x)[0].isfinite().any()


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_empty_batch_is_one(recipe):
    model = linear()
    with emulate(model, plan_for(RECIPES[recipe], "0")) as emulation:
        y = model(torch.zeros(0, 64, requires_grad=True))
        y.sum().backward()
        casts = emulation.modules["0"].operand_casts()
        assert int(casts["input"](torch.zeros(0, 64))[2]) == 0
    assert y.shape == (0, 48)
    assert not model[0].weight.grad.any()


def test_a_fused_encoder_layer_calls_its_linears_in_evaluation_too():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    x = torch.randn(2, 8, 32)
    with torch.no_grad():
        bare = model(x)
        with emulate(model, plan_for(RECIPES["mxfp4"], "linear1", "linear2")):
            assert (model(x) - bare).abs().max() > 0.01
        assert torch.equal(model(x), bare)


@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp4", "mxfp8", "block"])
def test_blocks_that_clip_and_flush_by_rule_are_no_alarm(recipe, tmp_path):
    torch.manual_seed(0)
    monitor = NumericsMonitor(1, dir=str(tmp_path), summary=False, strict=True)
    plan = plan_for(RECIPES[recipe], "fc1", "fc2")
    fit(Net(), EmulatePrecision(plan), monitor, steps=20)
    run = numwatch.open_run(tmp_path)
    assert [found for found in numwatch.diagnose(run) if found.severity != "info"] == []
    lines = summarize(run, worst=100).tensors
    assert {line.verdict for line in lines if line.slot.startswith("fc2:")} <= {"ok", "underflow"}
    assert not any(line.verdict == "overflow" for line in lines)
