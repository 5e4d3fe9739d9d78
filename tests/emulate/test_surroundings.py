"""Emulated Linears in training: checkpoints, copies, scalers, compilers, watchers."""

import copy
import pickle

import pytest
import torch
from emulate_builders import DELAYED, FP8, NVFP4, RECIPES, Net, fit, operand, plan_for, triple
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.checkpoint import checkpoint

import numwatch
from numwatch.callbacks import EmulatePrecision, NumericsMonitor
from numwatch.emulate import EmulatedLinear, casts, emulate
from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS
from numwatch.plan import ModulePlan, Plan
from numwatch.recipes.stepping import scales_over
from numwatch.taps.fp32 import copy_exactly, copy_in_fp32


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48))


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 64, generator=generator) * 2.0**i for i in range(n)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_micro_batches_count_one_by_one_under_checkpoints_too(reentrant):
    states = []
    for checkpointed in (False, True):
        model = linear()
        emulation = emulate(model, plan_for(DELAYED, "0"))
        for x in batches():
            x.requires_grad_()
            y = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
            y.square().sum().backward()
        states.append((emulation.state_dict(), model[0].weight.grad))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    history = states[0][0]["scales"]["0"]["input"]["history"]
    assert history[1:].tolist() == [x.abs().max().item() for x in batches()]


def test_a_module_called_twice_is_recomputed_with_the_scale_of_each_call():
    def trained(run):
        model = linear()
        with emulate(model, plan_for(DELAYED, "0")):
            for _ in range(2):
                one, other = (x.requires_grad_() for x in batches(2))
                (run(model, one) + run(model, other)).square().sum().backward()
        return model[0].weight.grad

    plain = trained(lambda model, x: model(x))
    again = trained(lambda model, x: checkpoint(model, x, use_reentrant=False))
    assert torch.equal(plain, again)


def test_inference_may_come_first():
    model = linear()
    emulation = emulate(model, plan_for(DELAYED, "0"))
    model.eval()
    with torch.inference_mode():
        model(batches()[0])
    assert emulation.state_dict()["scales"]["0"]["input"] == {}
    model.train()
    model(batches()[0]).sum().backward()
    assert torch.isfinite(model[0].weight.grad).all()


def test_an_operand_with_one_scale_is_drawn_once_for_both_of_its_gemms(monkeypatch):
    seen = []
    original = casts.TensorCast.round

    def spy(self, matrix, dim, scale, draw):
        seen.append(tuple(matrix.shape))
        return original(self, matrix, dim, scale, draw)

    monkeypatch.setattr(casts.TensorCast, "round", spy)
    model = linear()
    drawn = operand("e4m3", rounding="stochastic")
    with emulate(model, plan_for([drawn], "0")):
        model(batches()[0].requires_grad_()).sum().backward()
    assert seen == [(32, 64), (48, 64), (32, 48)]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_like_the_model_and_apart_from_it(twin_of, recipe):
    model = linear()
    emulation = emulate(model, plan_for(RECIPES[recipe], "0"))
    first, second, third = batches()
    model(first).sum().backward()
    model.zero_grad()
    twin = twin_of(model)
    before = copy.deepcopy(emulation.state_dict())
    results = []
    for each in (twin, model):
        if each is model:
            torch.testing.assert_close(emulation.state_dict(), before, rtol=0, atol=0)
        for x in (second, third):
            each(x).square().sum().backward()
        results.append(each[0].weight.grad)
    assert torch.equal(*results)


def test_the_twin_of_a_shadow_step_rounds_nothing():
    model = linear()
    emulate(model, plan_for(FP8, "0"))
    x = batches()[0]
    assert type(copy_in_fp32(model)[0]) is nn.Linear
    assert isinstance(copy_exactly(model)[0], EmulatedLinear)
    assert torch.equal(copy_in_fp32(model)(x), linear()(x))
    assert torch.equal(copy_exactly(model)(x), model(x))


class PlainScaled(Net):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return {"loss": loss}


@pytest.mark.parametrize("recipe", ["fp8", "delayed", "mxfp8", "nvfp4"])
def test_fp16_with_a_gradient_scaler(recipe):
    """A scale far too high is found to overflow, lowered, and the loss falls."""
    torch.manual_seed(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    model = PlainScaled()
    callback = EmulatePrecision(plan_for(RECIPES[recipe], "fc1", "fc2", "head"))
    fit(model, callback, steps=60, precision=None, plugins=[plugin])
    assert 1.0 < scaler.get_scale() < 2.0**30
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.losses[-1] < 0.5 * model.losses[0]


def test_two_emulations_come_off_in_either_order():
    for first, second in ((0, 1), (1, 0)):
        model = linear()
        emulations = [emulate(model, plan_for(FP8, "0")), emulate(model, plan_for(NVFP4, "0"))]
        emulations[first].remove()
        emulations[second].remove()
        assert type(model[0]) is nn.Linear
        assert "rounding" not in vars(model[0])


@pytest.mark.parametrize(
    ("names", "recipe", "message"),
    [
        (("fc1", "fc2"), DELAYED, "scales are of 'head', which the plan does not emulate"),
        (("fc1", "head"), [operand("e4m3", "delayed:history=9")], "are of another recipe"),
    ],
)
def test_scales_of_another_plan_are_refused(names, recipe, message):
    model = Net()
    with emulate(model, plan_for(DELAYED, "fc1", "head")) as emulation:
        model(torch.randn(4, 32)).sum().backward()
        state = copy.deepcopy(emulation.state_dict())
    emulation = emulate(model, plan_for(recipe, *names))
    with pytest.raises(NumwatchError, match=message):
        emulation.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc9", "the model lacks: 'fc9'; did you mean 'fc"),
        ("dropout", "the plan's 'dropout' is a Dropout; only an nn.Linear itself is emulated"),
    ],
)
def test_a_plan_that_does_not_fit_turns_nothing(name, message):
    model = Net()
    with pytest.raises(NumwatchError) as error:
        emulate(model, plan_for(FP8, "fc1", name))
    assert message in str(error.value)
    assert not any(isinstance(module, EmulatedLinear) for module in model.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dynamo warns of what it does itself
@pytest.mark.parametrize("recipe", ["fp8", "delayed", "nvfp4"])
def test_compiled_it_computes_the_same(recipe):
    model = linear()
    emulate(model, plan_for(RECIPES[recipe], "0"))
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    for x in batches():
        outputs = model(x), compiled(x)
        for y in outputs:
            y.square().sum().backward()
        assert torch.equal(*outputs)
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_record_tells_the_scale_that_each_cast_took(precision, tmp_path):
    """By delayed scaling, from the amaxes in the record itself."""
    torch.manual_seed(0)
    model = Net()
    monitor = NumericsMonitor(1, dir=str(tmp_path), summary=False, strict=True)
    plan = Plan("fp8", modules=(triple("fc2", *DELAYED), ModulePlan("head")))
    fit(model, EmulatePrecision(plan), monitor, steps=6, precision=precision)
    run = numwatch.open_run(tmp_path)
    for role, planned in zip(("input", "weight", "grad_output"), DELAYED, strict=True):
        rows = run.tensors(f"fc2:{role}").to_pylist()
        amaxes = torch.tensor([row["amax"] for row in rows])
        if role == "input" and precision == "bf16-mixed":
            amaxes = amaxes.bfloat16().float()  # autocast comes before the cast
        expected = scales_over(planned.recipe, amaxes, FORMATS[planned.format.name])
        assert [row["cast_scale"] for row in rows] == expected.tolist(), role
        assert len(rows) == 6
