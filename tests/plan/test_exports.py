"""Every export, run where its library is here, held against published signatures where not."""

import argparse
import json
import sys
import types
from enum import Enum

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from numwatch.callbacks import ApplyPlan
from numwatch.callbacks.training import training_arguments
from numwatch.errors import NumwatchError
from numwatch.formats import BLOCK_FORMATS, get_block_format, get_format
from numwatch.plan import LossScale, ModulePlan, Operand, Plan, Training, load_plan
from numwatch.plan.exports import EXPORTS, export
from numwatch.recipes.spec import parse_recipe


def operand(fmt, recipe="current", rounding="nearest"):
    found = get_block_format(fmt) if fmt in BLOCK_FORMATS else get_format(fmt)
    return Operand(found, parse_recipe(recipe), rounding)


def module(name, x, weight=None, gradient=None):
    operands = (x, weight or x, gradient or x)
    return ModulePlan(name, dict(zip(("input", "weight", "grad_output"), operands, strict=True)))


HYBRID = (operand("e4m3"), operand("e4m3"), operand("e5m2"))
ROWS = (operand("e4m3", "rowwise:power_of_two=true"),)
MX = (operand("mxfp8-e4m3", "mx:rule=rceil"),)
NVFP4 = (
    operand("nvfp4", "nvfp4:hadamard=true"),
    operand("nvfp4", "nvfp4:square=true"),
    operand("nvfp4", "nvfp4:hadamard=true", "stochastic"),
)
DELAYED = tuple(operand(fmt, "delayed:history=16,margin=1") for fmt in ("e4m3", "e4m3", "e5m2"))
BLOCK = tuple(operand(f"block-fp8-{size}", "block") for size in ("1x128", "128x128", "1x128"))


def plan(*modules, target="fp8", training=None):
    return Plan(target, training or Training(), modules)


def net():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4))).bfloat16()


def run(code, **names):
    exec(compile(code, "exported", "exec"), names)
    return names


def test_torchao_converts_as_apply_plan_does():
    mixed = plan(module("0", *HYBRID), module("1", *ROWS), module("2", *HYBRID), ModulePlan("3"))
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
            for name in ("input", "weight", "grad_output"):
                cast = f"cast_config_{name}"
                assert getattr(ours.config, cast) == getattr(theirs.config, cast)
            powers = [one.config.round_scales_to_power_of_2 for one in (ours, theirs)]
            assert powers[0] == powers[1]
    assert [type(layer).__name__ for layer in model] == ["Float8Linear"] * 3 + ["Linear"]


def test_torchao_wraps_the_weights_of_mxfp8():
    pytest.importorskip("torchao.prototype.moe_training.config")
    code = export(plan(module("0", *MX), ModulePlan("1"), module("3", *MX)), "torchao")
    assert "ScaleCalculationMode.RCEIL" in code
    emulated = code.replace(
        "MXFP8TrainingOpConfig(scale", "MXFP8TrainingOpConfig(kernel_preference=EMULATED, scale"
    )
    from torchao.quantization.quantize_.common import KernelPreference

    model = net()
    run(emulated, model=model, EMULATED=KernelPreference.EMULATED)
    wrapped = [type(layer.weight.data) is not torch.Tensor for layer in model]
    assert wrapped == [True, False, False, True]
    model(torch.randn(64, 64).bfloat16()).sum().backward()
    assert model[0].weight.grad.isfinite().all()


def test_torchao_rounds_int8_weights():
    int8 = Plan(
        "int8-weights",
        modules=(ModulePlan("0", {"weight": operand("int8", "rowwise")}), ModulePlan("1")),
    )
    model, kept = net().float(), net().float()
    run(export(int8, "torchao"), model=model)
    weight, true = model[0].weight.dequantize(), kept[0].weight
    step = true.abs().amax(1, keepdim=True) / 127
    assert (weight - true).abs().max() > 0
    assert ((weight - true).abs() <= 0.51 * step).all()
    assert torch.equal(model[1].weight, kept[1].weight)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ((module("0", *NVFP4),), "trains Linears in mxfp8-e4m3 alone.*nvfp4:hadamard=true"),
        ((module("0", operand("e4m3", rounding="stochastic")),), "rounded to nearest"),
        ((module("0", HYBRID[0], ROWS[0]),), "all operands of a module scaled"),
        ((module("0", *DELAYED),), "by `current` or all by `rowwise`.*delayed:history=16"),
        ((ModulePlan("0", {"input": HYBRID[0]}),), "leaves out weight, grad_output"),
        ((ModulePlan("0"),), "nothing to do"),
    ],
)
def test_torchao_refuses_what_it_can_not_train_in(modules, message):
    with pytest.raises(NumwatchError, match=message):
        export(plan(*modules), "torchao")


TRAININGS = {
    "dynamic": Training("fp16", "fp32", loss_scale=LossScale(2.0**13, 500, "a\nreason")),
    "static": Training("fp16", "fp32", loss_scale=LossScale(1024.0, None)),
    "bf16": Training("bf16", "fp32", reasons={"weights": "masters"}),
    "true": Training("bf16", "bf16", "stochastic"),
    "fp32": Training("fp32", "fp32"),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_amp_code_runs(name):
    training = TRAININGS[name]
    code = export(plan(training=training, target="amp"), "amp").replace('"cuda"', '"cpu"')
    found = run(code, model=net())
    with found["autocast"]:
        dtype = torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype
    names = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    assert dtype is names[training.compute]
    if training.loss_scale is not None:
        scaler = found["scaler"]
        assert scaler.get_scale() == training.loss_scale.init
        assert scaler.get_growth_interval() == (training.loss_scale.growth_interval or 2**31 - 1)
    if name == "true":
        assert found["model"][0].weight.dtype is torch.bfloat16
        assert type(found["optimizer"]).__name__ == "_AdamW"


@pytest.mark.parametrize("name", ["dynamic", "static", "bf16", "fp32"])
def test_lightning_code_makes_the_trainer_that_prove_makes(name, tmp_path, monkeypatch):
    chosen = plan(module("0", *HYBRID), training=TRAININGS[name])
    chosen.save(tmp_path / "plan.yaml")
    monkeypatch.chdir(tmp_path)
    code = export(chosen, "lightning").replace('"cuda"', '"cpu"')
    trainer = run(code.replace("Trainer(\n", 'Trainer(\n    accelerator="cpu",\n'))["trainer"]
    given = {"precision": "16-true", "accelerator": "cpu"}
    other = pl.Trainer(**{**given, **training_arguments(chosen, given)})
    assert trainer.precision == other.precision
    assert (trainer.scaler is None) == (other.scaler is None)
    if trainer.scaler is not None:
        assert trainer.scaler.state_dict() == other.scaler.state_dict()
    (callback,) = (c for c in trainer.callbacks if type(c).__name__ == "EmulatePrecision")
    assert callback.plan == chosen == load_plan("plan.yaml")


def test_json_is_strict():
    content = json.loads(export(plan(module("a", *NVFP4), ModulePlan("b", reason="why")), "json"))
    assert content["modules"]["a"]["operands"]["grad_output"] == {
        "format": "nvfp4",
        "recipe": "nvfp4:hadamard=true",
        "rounding": "stochastic",
        "reason": "",
        "predicted": None,
    }
    assert content["modules"]["b"] == {"reason": "why", "kept": True, "operands": {}}


# Transformer Engine 2.15's documentation, and transformer_engine/common/recipe/__init__.py at
# commit 000b637ede9c221d01067e5cdf4f0953da3ab7cd: the arguments that exports use.
SIGNATURES = {
    "DelayedScaling": ("margin", "fp8_format", "amax_history_len", "amax_compute_algo"),
    "Float8CurrentScaling": ("fp8_format", "use_power_2_scales"),
    "Float8BlockScaling": ("fp8_format",),
    "MXFP8BlockScaling": ("margin", "fp8_format"),
    "NVFP4BlockScaling": (
        "disable_rht",
        "disable_stochastic_rounding",
        "disable_2d_quantization",
        "fp4_format",
    ),
}


@pytest.fixture
def transformer_engine(monkeypatch):
    """Modules with the published names, whose recipes take the published arguments alone."""
    recipe = types.ModuleType("transformer_engine.common.recipe")
    recipe.Format = Enum("Format", ["E2M1", "E4M3", "E5M2", "HYBRID"])

    def maker(name, allowed):
        def make(**arguments):
            assert set(arguments) <= set(allowed)
            return name, arguments

        return make

    for name, allowed in SIGNATURES.items():
        setattr(recipe, name, maker(name, allowed))
    names = ("transformer_engine", "transformer_engine.common", "transformer_engine.pytorch")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, recipe.__name__, recipe)
    return recipe.Format


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        (
            DELAYED,
            (
                "DelayedScaling",
                {
                    "margin": 1,
                    "fp8_format": "HYBRID",
                    "amax_history_len": 16,
                    "amax_compute_algo": "max",
                },
            ),
        ),
        (HYBRID, ("Float8CurrentScaling", {"fp8_format": "HYBRID"})),
        ((operand("e4m3"),), ("Float8CurrentScaling", {"fp8_format": "E4M3"})),
        (BLOCK, ("Float8BlockScaling", {"fp8_format": "E4M3"})),
        (MX, ("MXFP8BlockScaling", {"fp8_format": "E4M3"})),
        (NVFP4, ("NVFP4BlockScaling", {})),
        (
            (operand("nvfp4", "nvfp4"),),
            (
                "NVFP4BlockScaling",
                dict.fromkeys(SIGNATURES["NVFP4BlockScaling"][:3], True),
            ),
        ),
    ],
)
def test_transformer_engine_is_called_as_published(operands, expected, transformer_engine):
    code = export(
        plan(module("0", *operands), ModulePlan("out", reason="last")), "transformer-engine"
    )
    found = run(code.partition("with te.autocast")[0])
    name, arguments = found["recipe"]
    plain = {k: getattr(v, "name", v) for k, v in arguments.items()}
    assert (name, plain) == expected
    assert found["kept"] == {"out"}


def test_transformer_engine_takes_e5m2_gradients_if_any_module_needs_them(transformer_engine):
    narrow = (operand("e4m3"),)
    code = export(
        plan(module("0", *narrow), module("1", *narrow), module("2", *HYBRID)),
        "transformer-engine",
    )
    assert "Float8CurrentScaling(fp8_format=Format.HYBRID)" in code
    assert "#   0" in code
    with pytest.raises(NumwatchError, match="no recipe for input e4m3 rowwise"):
        export(plan(module("0", *ROWS)), "transformer-engine")


@pytest.fixture
def megatron():
    """megatron/training/arguments.py, as published: what exports use of it."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for name in ("fp16", "bf16", "first-last-layers-bf16"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("loss-scale", "initial-loss-scale", "min-loss-scale", "loss-scale-window"):
        parser.add_argument(f"--{name}", type=float)
    for name in (
        "hysteresis",
        "fp8-margin",
        "fp8-amax-history-len",
        "num-layers-at-start-in-bf16",
        "num-layers-at-end-in-bf16",
    ):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--fp8-format", choices=["e4m3", "hybrid"])
    parser.add_argument("--fp8-recipe", choices=["tensorwise", "delayed", "mxfp8", "blockwise"])
    parser.add_argument("--fp8-amax-compute-algo", choices=["most_recent", "max"])
    parser.add_argument("--fp4-format", choices=["e2m1"])
    parser.add_argument("--fp4-recipe", choices=["nvfp4", "custom"])

    def parse(text):
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return vars(parser.parse_args(" ".join(lines).split()))

    return parse


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        (DELAYED, {"fp8_format": "hybrid", "fp8_recipe": "delayed", "fp8_margin": 1}),
        (HYBRID, {"fp8_format": "hybrid", "fp8_recipe": "tensorwise"}),
        (BLOCK, {"fp8_format": "e4m3", "fp8_recipe": "blockwise"}),
        (MX, {"fp8_format": "e4m3", "fp8_recipe": "mxfp8"}),
        (NVFP4, {"fp4_format": "e2m1", "fp4_recipe": "nvfp4"}),
    ],
)
def test_megatron_takes_the_flags(operands, expected, megatron):
    layers = [
        ModulePlan("layers.0.fc"),
        module("layers.1.fc", *operands),
        module("layers.2.fc", *operands),
        ModulePlan("layers.3.fc"),
        ModulePlan("layers.4.fc"),
        ModulePlan("head"),
    ]
    text = export(plan(*layers), "megatron")
    found = megatron(text)
    assert found["bf16"]
    assert {key: found[key] for key in expected} == expected
    assert found["first_last_layers_bf16"]
    assert found["num_layers_at_start_in_bf16"] == 1
    assert found["num_layers_at_end_in_bf16"] == 2
    assert "# stays in bf16 too: head" in text


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_megatron_takes_the_loss_scale(name, megatron):
    found = megatron(export(plan(target="amp", training=TRAININGS[name]), "megatron"))
    assert found["fp16"]
    if name == "static":
        assert found["loss_scale"] == 1024
    else:
        assert (found["initial_loss_scale"], found["loss_scale_window"]) == (8192, 500)


def test_an_export_that_is_none():
    with pytest.raises(
        NumwatchError, match=r"torchao, .*json; got 'torcha'; did you mean 'torchao'"
    ):
        export(plan(), "torcha")


def test_every_export_answers_for_a_plain_plan():
    texts = {name: export(plan(module("0", *HYBRID)), name) for name in EXPORTS}
    assert all(text.strip() for text in texts.values())
