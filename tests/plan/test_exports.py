"""Exports for the training as a whole, run; JSON; and what holds for every export."""

import json

import pytest
import pytorch_lightning as pl
import torch
from plan_builders import fp8, operand
from torch import nn

from numwatch.callbacks.training import training_arguments
from numwatch.errors import NumwatchError
from numwatch.plan import LossScale, ModulePlan, Plan, Training, load_plan
from numwatch.plan.exports import EXPORTS, export


def plan(*modules, target="fp8", training=None):
    return Plan(target, training or Training(), modules)


def net():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4))).bfloat16()


def run(code, **names):
    exec(compile(code, "exported", "exec"), names)
    return names


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
    chosen = plan(fp8("0"), training=TRAININGS[name])
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


NVFP4 = ModulePlan(
    "a", {"grad_output": operand("nvfp4", "nvfp4:hadamard=true", rounding="stochastic")}
)


def test_json_is_strict():
    content = json.loads(export(plan(NVFP4, ModulePlan("b", reason="why")), "json"))
    assert content["modules"]["a"]["operands"]["grad_output"] == {
        "format": "nvfp4",
        "recipe": "nvfp4:hadamard=true",
        "rounding": "stochastic",
        "reason": "",
        "predicted": None,
    }
    assert content["modules"]["b"] == {"reason": "why", "kept": True, "operands": {}}


def test_an_export_that_is_none():
    with pytest.raises(
        NumwatchError, match=r"torchao, .*json; got 'torcha'; did you mean 'torchao'"
    ):
        export(plan(), "torcha")


def test_every_export_answers_for_a_plain_plan():
    texts = {name: export(plan(fp8("0")), name) for name in EXPORTS}
    assert all(text.strip() for text in texts.values())
