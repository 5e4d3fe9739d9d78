"""`ApplyPlan`: a plan in torchao's real float8."""

import pytest
import torch
from emulate_builders import DELAYED, FP8, NVFP4, Net, fit, operand, plan_for, triple
from torch import nn
from versions import needs_scaled_mm

from numwatch.callbacks import ApplyPlan, EmulatePrecision, Float8Training
from numwatch.callbacks import scaled_mm as kernels
from numwatch.callbacks.training import training_fault
from numwatch.errors import NumwatchError
from numwatch.plan import LossScale, ModulePlan, Plan, Training
from numwatch.taps.float8 import is_float8_linear

ROWS = (operand("e4m3", "rowwise:power_of_two=true"),)
MIXED = Plan("fp8", modules=(triple("fc1", *FP8), triple("fc2", *ROWS), ModulePlan("head")))


@pytest.fixture(autouse=True)
def _same_switches():
    before = torch.backends.mkldnn.enabled
    yield
    assert torch.backends.mkldnn.enabled == before


@needs_scaled_mm
def test_each_module_gets_its_own_formats_and_scales():
    model, callback = Net(), ApplyPlan(MIXED)
    fit(model, callback)
    assert callback.converted == ("fc1", "fc2")
    assert type(model.head) is nn.Linear
    one, other = model.fc1.config, model.fc2.config
    assert one.cast_config_grad_output.target_dtype is torch.float8_e5m2
    assert one.cast_config_input.scaling_granularity.short_str() == "ten"
    assert not one.round_scales_to_power_of_2
    assert other.cast_config_grad_output.target_dtype is torch.float8_e4m3fn
    assert other.cast_config_weight.scaling_granularity.short_str() == "axs"
    assert other.round_scales_to_power_of_2


def test_the_same_training_as_emulated():
    """One step's gradients differ by the accumulation's rounding and that of BF16 alone."""

    def gradients(callback):
        torch.manual_seed(0)
        model = Net()
        fit(model, callback, steps=1)
        return [p.grad for p in model.parameters()]

    plan = plan_for(FP8, "fc1", "fc2", "head")
    for one, other in zip(
        gradients(ApplyPlan(plan)), gradients(EmulatePrecision(plan)), strict=True
    ):
        assert (one - other).norm() < 0.02 * other.norm()


@needs_scaled_mm
def test_a_second_fit_changes_nothing():
    model, callback = Net(), ApplyPlan(MIXED)
    fit(model, callback)
    config = model.fc1.config
    fit(model, callback)
    assert model.fc1.config is config
    assert sum(map(is_float8_linear, model.modules())) == 2


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ((triple("fc1", *DELAYED),), "scaled by `current` or `rowwise`.*delayed:history=4"),
        ((triple("fc1", *NVFP4),), "torchao trains in e4m3 and e5m2.*EmulatePrecision"),
        ((triple("fc1", FP8[0], ROWS[0], FP8[2]),), "scales all operands of a module alike"),
        ((ModulePlan("fc1", {"input": FP8[0]}),), "leaves out weight, grad_output"),
        ((triple("fc1", operand("e5m2")),), "no device multiplies E5M2 with E5M2"),
        ((triple("fc1", operand("e4m3", rounding="stochastic")),), "rounded to nearest"),
    ],
)
def test_what_torchao_can_not_train_in_is_refused_before_the_fit(modules, message):
    with pytest.raises(NumwatchError, match=message):
        ApplyPlan(Plan("fp8", modules=modules))


def test_modules_that_are_missing_or_no_linears():
    with pytest.raises(NumwatchError, match="'fc3'; did you mean"):
        fit(Net(), ApplyPlan(plan_for(FP8, "fc3")))
    with pytest.raises(NumwatchError, match="'dropout' is a Dropout"):
        fit(Net(), ApplyPlan(plan_for(FP8, "dropout")))


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (Training("bf16", "fp32"), None),
        (Training("bf16", "bf16"), "precision='bf16-true'"),
        (Training("bf16", "fp32", loss_scale=LossScale(8.0)), "loss scale of 8"),
    ],
)
def test_a_trainer_that_does_otherwise_is_told(training, told, recwarn):
    plan = Plan("fp8", training, (triple("fc1", *FP8),))
    if told is None:
        fit(Net(), ApplyPlan(plan))
        return
    with pytest.warns(UserWarning, match=told):
        fit(Net(), ApplyPlan(plan))


class Boom(Net):
    def training_step(self, batch, index):
        assert not torch.backends.mkldnn.enabled
        if index:
            raise RuntimeError("boom")
        return super().training_step(batch, index)


@needs_scaled_mm
@pytest.mark.parametrize("callback", [lambda: ApplyPlan(MIXED), Float8Training])
def test_onednn_is_off_within_the_fit_where_it_is_slow(callback, monkeypatch, caplog):
    """The autouse fixture sees that it is on again, after an exception too."""
    monkeypatch.setattr(kernels, "onednn_slowdown", lambda: 1000.0)
    with caplog.at_level("INFO"), pytest.raises(RuntimeError, match="boom"):
        fit(Boom(), callback(), steps=3, batch=16)
    assert "1000 times as long" in caplog.text


@needs_scaled_mm
def test_onednn_stays_where_it_is_fast(monkeypatch):
    monkeypatch.setattr(kernels, "onednn_slowdown", lambda: 0.5)
    seen = []

    class Looks(Net):
        def training_step(self, batch, index):
            seen.append(torch.backends.mkldnn.enabled)
            return super().training_step(batch, index)

    fit(Looks(), ApplyPlan(MIXED, emulate=None), steps=1)
    assert seen == [torch.backends.mkldnn.enabled]


@needs_scaled_mm
def test_the_slowdown_is_a_ratio():
    assert kernels.onednn_slowdown() > 0


@needs_scaled_mm
@pytest.mark.parametrize("make", [lambda: ApplyPlan(MIXED), Float8Training])
def test_a_new_callback_on_a_converted_model_knows_its_kernels(make, monkeypatch):
    monkeypatch.setattr(kernels, "onednn_slowdown", lambda: 1000.0)
    model = Net()
    fit(model, make())
    again = make()
    seen = []
    model.fc1.register_forward_hook(lambda *_: seen.append(torch.backends.mkldnn.enabled))
    fit(model, again, steps=1)
    assert again.emulated is False
    assert seen == [False]


def test_another_loss_scale_is_told():
    plan = Plan("fp8", Training("fp16", "fp32", loss_scale=LossScale(8.0)), ())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    assert training_fault(plan, "16-mixed", scaler) == (
        "the plan wants a loss scale of 8, the Trainer has 64"
    )
    assert training_fault(plan, "16-mixed", torch.amp.GradScaler("cpu", init_scale=8.0)) is None
