"""torchao's export, run on small models: who is turned, into what, and what is refused."""

import re

import pytest
import pytorch_lightning as pl
import torch
from plan_builders import gemm, operand
from torch import nn
from versions import needs

from numwatch.callbacks import ApplyPlan
from numwatch.errors import NumwatchError
from numwatch.plan import ModulePlan, Plan
from numwatch.plan.exports import export

HYBRID = {"input": "e4m3 current", "weight": "e4m3 current", "grad_output": "e5m2 current"}
POWERS = dict.fromkeys(HYBRID, "e4m3 current:power_of_two=true")
ROWS = dict.fromkeys(HYBRID, "e4m3 rowwise:power_of_two=true")
RCEIL = dict.fromkeys(HYBRID, "mxfp8-e4m3 mx:rule=rceil")
FLOOR = dict.fromkeys(HYBRID, "mxfp8-e4m3 mx")
needs_prototypes = needs("torchao", "0.18", "what trains in MXFP8 and NVFP4")
BLOCKS = dict.fromkeys(HYBRID, "block-fp8-1x128 block")


def nvfp4(name):
    hadamard, square = "nvfp4:hadamard=true", "nvfp4:square=true"
    return ModulePlan(
        name,
        {
            "input": operand("nvfp4", hadamard),
            "weight": operand("nvfp4", square),
            "grad_output": operand("nvfp4", hadamard, rounding="stochastic"),
        },
    )


def plan(*modules):
    return Plan("fp8", modules=modules)


def net(bias=False):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64, bias=bias) for _ in range(4))).bfloat16()


def run(code, **names):
    exec(compile(code, "exported", "exec"), names)
    return names


def classes(model):
    return [type(layer).__name__ for layer in model]


def test_fp8_is_turned_as_apply_plan_turns_it():
    mixed = plan(gemm("0", **HYBRID), gemm("1", **ROWS), gemm("2", **POWERS), ModulePlan("3"))
    model = net()
    run(export(mixed, "torchao"), model=model)

    class Owner(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

    other = Owner()
    prefixed = plan(*(ModulePlan(f"net.{m.module}", m.operands) for m in mixed.modules))
    callback = ApplyPlan(prefixed, emulate=True)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    callback.setup(trainer, other, "fit")
    for ours, theirs in zip(model, other.net, strict=True):
        assert type(ours) is type(theirs)
        if hasattr(ours, "config"):
            for name in HYBRID:
                cast = f"cast_config_{name}"
                assert getattr(ours.config, cast) == getattr(theirs.config, cast)
            powers = [one.config.round_scales_to_power_of_2 for one in (ours, theirs)]
            assert powers[0] == powers[1]
    assert classes(model) == ["Float8Linear"] * 3 + ["Linear"]


def emulated(code):
    """MXFP8's code on hardware without MXFP8."""
    chosen = "kernel_preference=KernelPreference.EMULATED, scale_calculation_mode"
    imported = "from torchao.quantization.quantize_.common import KernelPreference\n"
    return imported + code.replace("scale_calculation_mode", chosen)


@needs_prototypes
def test_mxfp8_trains_weights_and_biases_and_rounds_by_its_rule():
    code = export(plan(gemm("0", **RCEIL), ModulePlan("1"), gemm("3", **FLOOR)), "torchao")
    model, true = net(bias=True), net(bias=True)
    weight = model[0].weight
    with torch.no_grad():
        for one in (model, true):
            one[0].bias.fill_(100.0)
    run(emulated(code), model=model)
    assert classes(model) == ["MXFP8Linear", "Linear", "Linear", "MXFP8Linear"]
    assert [model[at].scale_calculation_mode.name for at in (0, 3)] == ["RCEIL", "FLOOR"]
    assert model[0].weight is weight
    x = torch.randn(64, 64).bfloat16()
    # A bias of 100 is there: `MXFP8TrainingOpConfig` of torchao 0.18 would have lost it.
    torch.testing.assert_close(model[0](x), true[0](x), atol=1.0, rtol=0.0)
    assert not torch.equal(model[0](x), true[0](x))
    model(x).sum().backward()
    for layer in model:
        assert layer.weight.grad.isfinite().all()
        assert layer.bias.grad.any()


@needs_prototypes
def test_nvfp4_is_turned_in_place():
    model = net(bias=True)
    weights = [layer.weight for layer in model]
    run(export(plan(nvfp4("1"), gemm("2", **HYBRID)), "torchao"), model=model)
    assert classes(model) == ["Linear", "NVFP4Linear", "Float8Linear", "Linear"]
    assert all(layer.weight is weight for layer, weight in zip(model, weights, strict=True))
    assert model[1].bias is not None


def test_int8_weights_are_rounded_row_by_row():
    int8 = Plan("int8-weights", modules=(gemm("0", weight="int8 rowwise"), ModulePlan("1")))
    model, kept = net().float(), net().float()
    run(export(int8, "torchao"), model=model)
    weight, true = model[0].weight.dequantize(), kept[0].weight
    step = true.abs().amax(1, keepdim=True) / 127
    assert (weight - true).abs().max() > 0
    assert ((weight - true).abs() <= 0.51 * step).all()
    assert torch.equal(model[1].weight, kept[1].weight)


@pytest.mark.parametrize(
    "modules",
    [
        gemm("fc", **HYBRID),
        pytest.param(gemm("fc", **RCEIL), marks=needs_prototypes),
        pytest.param(nvfp4("fc"), marks=needs_prototypes),
    ],
)
def test_a_plan_for_another_model_is_refused(modules):
    model = net()
    code = export(plan(modules), "torchao")
    with pytest.raises(LookupError, match=r"modules that the model lacks: \['fc'\]"):
        run(code, model=model)
    assert classes(model) == ["Linear"] * 4


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (gemm("0", **{**HYBRID, "weight": "e4m3 rowwise"}), "weight e4m3 rowwise"),
        (gemm("0", **dict.fromkeys(HYBRID, "e5m2 current")), "input e5m2 current"),
        (gemm("0", **dict.fromkeys(HYBRID, "e4m3 static:scale=2.0")), "static:scale=2.0"),
        (gemm("0", **dict.fromkeys(HYBRID, "e4m3 delayed")), "input e4m3 delayed"),
        (gemm("0", **dict.fromkeys(HYBRID, "fp16 current")), "input fp16 current"),
        (gemm("0", **{**RCEIL, "grad_output": "mxfp8-e5m2 mx:rule=rceil"}), "mxfp8-e5m2"),
        (gemm("0", **dict.fromkeys(HYBRID, "mxfp8-e4m3 mx:rule=even")), "mx:rule=even"),
        (gemm("0", **dict.fromkeys(HYBRID, "mxfp4 mx")), "mxfp4 mx"),
        (gemm("0", **dict.fromkeys(HYBRID, "nvfp4 nvfp4")), "nvfp4 nvfp4"),
        # torchao's scales are no powers of two there, so that it would not be what was planned.
        (gemm("0", **BLOCKS), "block-fp8-1x128 block"),
        (
            ModulePlan(
                "0", dict.fromkeys(HYBRID, operand("e4m3", "current", rounding="stochastic"))
            ),
            "e4m3 current stochastic",
        ),
    ],
)
def test_what_torchao_would_not_train_in_is_refused(module, told):
    text = f"^torchao trains Linears in e4m3 and at most one e5m2, .*; 0 has .*{re.escape(told)}"
    with pytest.raises(NumwatchError, match=text):
        export(plan(gemm("1", **HYBRID), module), "torchao")


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (Plan("int8-weights", modules=(ModulePlan("0"),)), "rounds no weight"),
        (
            Plan("int8-weights", modules=(gemm("0", weight="int8 current"),)),
            "0 has weight int8 current nearest",
        ),
        (
            Plan("int8-weights", modules=(gemm("0", weight="int8 rowwise", input="int8 rowwise"),)),
            "0 has input int8 rowwise",
        ),
        (plan(ModulePlan("0")), "rounds no operand"),
        (plan(gemm("0", input="e4m3 current")), "leaves out weight, grad_output"),
    ],
)
def test_what_leaves_torchao_nothing_to_do_is_refused(chosen, told):
    with pytest.raises(NumwatchError, match=told):
        export(chosen, "torchao")
