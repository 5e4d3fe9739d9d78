"""What exports make of any plan at all: text that compiles, JSON that is strict."""

import json

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from plan_builders import PLANS, fp8, gemm, operand
from torch import nn

from numwatch.callbacks.training import training_arguments
from numwatch.errors import NumwatchError
from numwatch.plan import ModulePlan, Operand, Plan, Prediction, Training, load_plan
from numwatch.plan.exports import export
from numwatch.stats import Bounded


def run(code, **names):
    exec(compile(code, "exported", "exec"), names)
    return names


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_code_for_the_training_compiles_whatever_names_and_reasons_hold(plan):
    for name in ("amp", "lightning"):
        compile(export(plan, name), name, "exec")


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_json_is_strict_and_whole(plan):
    content = json.loads(export(plan, "json"), parse_constant=refuse_constant)
    assert content["target"] == plan.target
    assert list(content["modules"]) == [module.module for module in plan.modules]
    told = [
        (module, role, one["format"], one["rounding"], one["reason"])
        for module, planned in content["modules"].items()
        for role, one in planned["operands"].items()
    ]
    assert told == [
        (module, role, one.format.name, one.rounding, one.reason)
        for module, role, one in plan.operands()
    ]


def test_json_has_words_for_what_it_has_no_numbers_for():
    share = Bounded(1.0, 0.0, float("inf"))
    chosen = operand("e4m3", "current")
    predicted = Prediction(share, Bounded.exactly(0.0), float("nan"), float("-inf"))
    chosen = Operand(chosen.format, chosen.recipe, predicted=predicted)
    plan = Plan("fp8", modules=(ModulePlan("fc", {"input": chosen}),), source={"a": [float("inf")]})
    content = json.loads(export(plan, "json"), parse_constant=refuse_constant)
    assert content["modules"]["fc"]["operands"]["input"]["predicted"] == {
        "flushed": {"value": 1.0, "low": 0.0, "high": "Infinity"},
        "saturated": {"value": 0.0, "low": 0.0, "high": 0.0},
        "median_relative_error": "NaN",
        "sqnr": "-Infinity",
    }
    assert content["source"] == {"a": ["Infinity"]}


def test_lightning_code_for_bf16_weights_is_what_prove_trains_with(tmp_path, monkeypatch):
    chosen = Plan("fp8", Training("bf16", "bf16", "stochastic"), (fp8("0"),))
    chosen.save(tmp_path / "plan.yaml")
    monkeypatch.chdir(tmp_path)
    code = export(chosen, "lightning")
    code = code.replace("Trainer(\n", 'Trainer(\n    accelerator="cpu",\n')
    found = run(code)
    given = {"precision": "bf16-mixed", "accelerator": "cpu"}
    other = pl.Trainer(**{**given, **training_arguments(chosen, given)})
    assert found["trainer"].precision == other.precision == "bf16-true"
    assert found["trainer"].scaler is None
    assert "_AdamW(self.parameters(), bf16_stochastic_round=True)" in code
    assert load_plan("plan.yaml") == chosen


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64, bias=False)
        self.out = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return self.out(torch.relu(self.fc(x)))


def nested():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).bfloat16()


def test_torchao_finds_modules_by_their_paths():
    plan = Plan("fp8", modules=(fp8("0.fc"), fp8("1.out", "e4m3", "rowwise"), ModulePlan("1.fc")))
    model = nested()
    run(export(plan, "torchao"), model=model)
    turned = {
        name: module.config.cast_config_grad_output.target_dtype
        for name, module in model.named_modules()
        if type(module).__name__ == "Float8Linear"
    }
    assert turned == {"0.fc": torch.float8_e5m2, "1.out": torch.float8_e4m3fn}


def test_int8_weights_move_a_product_by_no_more_than_half_a_step_each():
    plan = Plan("int8-weights", modules=(gemm("0.fc", weight="int8 rowwise"),))
    model, true = nested().float(), nested().float()
    run(export(plan, "torchao"), model=model)
    x = torch.randn(32, 64)
    weight = true[0].fc.weight
    bound = x.abs().sum(1, keepdim=True) * (weight.abs().amax(1) / 127 * 0.51)
    moved = (model[0].fc(x) - true[0].fc(x)).abs()
    assert moved.max() > 0
    assert (moved <= bound).all()
    assert type(model[0].out.weight.data) is torch.Tensor


def test_torchao_has_nothing_to_do_where_no_weight_is_rounded():
    plan = Plan("int8-weights", modules=(ModulePlan("0.fc"),))
    with pytest.raises(NumwatchError, match="rounds no weight: torchao has nothing to do"):
        export(plan, "torchao")
