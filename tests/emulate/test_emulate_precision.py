"""`EmulatePrecision` in real Trainers."""

import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch
from emulate_builders import DELAYED, FP8, RECIPES, Net, fit, plan_for, triple
from torch import nn

from numwatch.callbacks import EmulatePrecision
from numwatch.emulate import EmulatedLinear
from numwatch.errors import NumwatchError
from numwatch.plan import Plan

NAMES = ("fc1", "fc2", "head")


class BuiltLater(Net):
    def __init__(self):
        super().__init__()
        del self.fc1, self.fc2, self.head

    def configure_model(self):
        if not hasattr(self, "fc1"):
            for name, module in Net().named_children():
                setattr(self, name, module)


def emulated(model):
    return [name for name, module in model.named_modules() if isinstance(module, EmulatedLinear)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_lowers_the_loss(recipe):
    model = Net()
    fit(model, EmulatePrecision(plan_for(RECIPES[recipe], *NAMES)), steps=60)
    assert model.losses[-1] < 0.5 * model.losses[0]


@pytest.mark.parametrize("model_class", [Net, BuiltLater])
def test_turns_what_is_planned_and_stays_until_removed(model_class):
    model, callback = model_class(), EmulatePrecision(plan_for(FP8, "fc1", "head"))
    fit(model, callback, validate=True)
    assert emulated(model) == ["fc1", "head"]
    callback.remove()
    assert emulated(model) == []
    assert {type(module) for module in model.children()} == {nn.Linear, nn.Dropout}
    callback.remove()


def test_a_path_is_read(tmp_path):
    plan = plan_for(FP8, "fc1", "head")
    plan.save(tmp_path / "plan.yaml")
    assert EmulatePrecision(str(tmp_path / "plan.yaml")).plan == plan


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(NumwatchError, match="'fc3'; did you mean 'fc"):
        fit(Net(), EmulatePrecision(plan_for(FP8, "fc3")))


def test_a_second_fit_goes_on_with_the_same_scales():
    model, callback = Net(), EmulatePrecision(plan_for(DELAYED, *NAMES))
    fit(model, callback)
    emulation = callback.emulation
    history = callback.state_dict()["scales"]["fc1"]["input"]["history"]
    assert (history > 0).sum() == 2
    fit(model, callback, steps=1)
    assert callback.emulation is emulation
    history = callback.state_dict()["scales"]["fc1"]["input"]["history"]
    assert (history > 0).sum() == 3


def test_a_resumed_fit_has_the_scales_and_draws_of_one_that_went_on(tmp_path):
    plan = Plan("nvfp4", modules=(triple("fc1", *RECIPES["nvfp4"]), triple("fc2", *DELAYED)))

    def trained(steps, ckpt=None):
        torch.manual_seed(0)
        model, callback = Net(), EmulatePrecision(plan)
        keep = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
        fit(model, callback, keep, steps=steps, ckpt=ckpt, enable_checkpointing=True)
        return model.state_dict(), callback.state_dict()

    through = trained(4)
    path = next(tmp_path.glob("*step=2*.ckpt"))
    assert torch.load(path, weights_only=True)["callbacks"]
    torch.testing.assert_close(trained(4, str(path)), through, rtol=0, atol=0)


def test_copies_and_pickles_go_on_where_it_stands():
    model, callback = Net(), EmulatePrecision(plan_for(DELAYED, *NAMES))
    fit(model, callback)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert twin.emulation is None
        torch.testing.assert_close(twin.state_dict(), callback.state_dict(), rtol=0, atol=0)
    assert emulated(model) == list(NAMES)


def test_accepted_by_the_other_namespace():
    lightning = pytest.importorskip("lightning.pytorch")
    callback = EmulatePrecision(plan_for(FP8, "fc1"))
    assert isinstance(callback, lightning.Callback)
    assert isinstance(callback, pl.Callback)
