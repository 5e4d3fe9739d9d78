import copy
import importlib.util
import pickle
import sys
from importlib.metadata import requires

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchao.float8 import Float8LinearConfig
from versions import needs, needs_scaled_mm

from numwatch.callbacks import Float8Training
from numwatch.callbacks._torchao import scaled_mm_fault
from numwatch.callbacks.float8 import RECIPES, choose
from numwatch.errors import NumwatchError
from numwatch.taps.float8 import is_float8_linear

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
]

needs_rows = needs("torchao", "0.13", "emulated products of row scales under autocast")
RECIPES_UNDER_AUTOCAST = [
    pytest.param(recipe, marks=() if recipe == "tensorwise" else needs_rows) for recipe in RECIPES
]


class Custom(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(32, 64)
        self.fc2 = nn.Linear(64, 64, bias=False)
        self.odd = nn.Linear(64, 24)
        self.custom = Custom(24, 16)
        self.head = nn.Linear(16, 16)
        self.losses = []

    def forward(self, x):
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return self.head(self.custom(self.odd(x)))

    def training_step(self, batch, _):
        x, y = batch
        loss = (self(x.to(self.fc1.weight.dtype)).float() - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, eps=1e-6)


class BuiltLater(Model):
    def __init__(self):
        super().__init__()
        del self.fc1, self.fc2, self.odd, self.custom, self.head

    def configure_model(self):
        if not hasattr(self, "fc1"):
            for name, module in Model().named_children():
                setattr(self, name, module)


def fit(model, *callbacks, precision="bf16-mixed", steps=2, **arguments):
    x = torch.randn(48, 32)
    y = torch.sin(x[:, :16] * 2)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        precision=precision,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=48))
    return trainer


def converted(model):
    return [name for name, module in model.named_modules() if is_float8_linear(module)]


@pytest.mark.parametrize("model_class", [Model, BuiltLater])
def test_converts_eligible_linears_only(model_class):
    model, callback = model_class(), Float8Training()
    fit(model, callback)
    assert converted(model) == ["fc1", "fc2", "head"]
    assert callback.converted == ("fc1", "fc2", "head")
    assert type(model.custom) is Custom


def test_attention_projections_stay_as_their_functional_form_needs_them():
    block = nn.Module()
    block.attention = nn.MultiheadAttention(16, 2)
    block.fc = nn.Linear(16, 16)
    from numwatch.callbacks.float8 import _linears

    assert [name for name, _ in _linears(block)] == ["fc"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["fc*"], None, ["fc1", "fc2"]),
        (None, ["head"], ["fc1", "fc2"]),
        (["fc?", "head"], ["fc2"], ["fc1", "head"]),
        (["odd", "head"], None, ["head"]),
    ],
)
def test_globs_choose(include, exclude, expected):
    model = Model()
    fit(model, Float8Training(include=include, exclude=exclude), steps=1)
    assert converted(model) == expected


def test_a_mistyped_glob_names_near_ones():
    with pytest.raises(NumwatchError) as error:
        fit(Model(), Float8Training(exclude=["haed"]))
    assert str(error.value) == (
        "Float8Training's exclude='haed' matches no Linear; did you mean 'head'?"
    )


def test_nothing_eligible_is_said():
    with pytest.raises(NumwatchError, match="multiple of 16; of the model's 1 none"):
        choose({"odd": nn.Linear(24, 16)})
    with pytest.raises(NumwatchError, match="multiple of 16"):
        choose({"fc": nn.Linear(32, 16)}, exclude=["fc"])


def test_an_unknown_recipe_names_near_ones():
    with pytest.raises(NumwatchError) as error:
        Float8Training("rowise")
    assert str(error.value) == (
        "Float8Training's recipe is one of tensorwise, rowwise, rowwise_with_gw_hp; got 'rowise'"
        "; did you mean 'rowwise' or 'tensorwise' or 'rowwise_with_gw_hp'?"
    )


@pytest.mark.parametrize("present", [False, True], ids=["not installed", "blocked"])
def test_missing_torchao_is_one_clear_line(monkeypatch, present):
    if present:
        monkeypatch.setitem(sys.modules, "torchao", None)
    else:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "torchao" else find_spec(name)
        )
    with pytest.raises(NumwatchError) as error:
        Float8Training()
    (extra,) = [one.partition(";")[0] for one in requires("numwatch") if one.endswith('"fp8"')]
    assert str(error.value) == f"Float8Training needs torchao; type: pip install '{extra}'"


def test_parameters_keep_their_identity_and_the_optimizer_moves_them():
    model = Model()
    before = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    keys = list(model.state_dict())
    trainer = fit(model, Float8Training())
    after = dict(model.named_parameters())
    assert list(model.state_dict()) == keys
    assert all(after[name] is p for name, p in before.items())
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in after.values()}
    assert all(not torch.equal(after[name], values[name]) for name in values)


@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_lowers_the_loss(recipe, precision):
    lowers_the_loss(recipe, precision)


@pytest.mark.parametrize("recipe", RECIPES_UNDER_AUTOCAST)
def test_training_under_autocast_lowers_the_loss(recipe):
    lowers_the_loss(recipe, "bf16-mixed")


def lowers_the_loss(recipe, precision):
    model, callback = Model(), Float8Training(recipe)
    fit(model, callback, precision=precision, steps=60)
    assert model.losses[-1] < 0.5 * model.losses[0]
    assert converted(model)


@needs_scaled_mm
@pytest.mark.parametrize("recipe", RECIPES)
def test_emulated_agrees_with_real(recipe):
    x, grad_output = torch.randn(48, 64), torch.randn(48, 64)
    results = []
    for emulate in (True, False):
        torch.manual_seed(0)
        model, callback = Model(), Float8Training(recipe, emulate=emulate)
        fit(model, callback, steps=0, precision="32-true")
        assert callback.emulated is emulate
        inputs = x.clone().requires_grad_()
        output = model.fc2(inputs)
        output.backward(grad_output)
        results.append((output, inputs.grad, model.fc2.weight.grad))
    # The same float8 operands; the order of the FP32 sums differs, and torchao's rowwise GEMM
    # leaves in BF16.
    rounding = 2**-20 if recipe == "tensorwise" else 2**-8
    for emulated, real in zip(*results, strict=True):
        torch.testing.assert_close(emulated, real, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES_UNDER_AUTOCAST)
def test_under_cpu_autocast_the_gemm_takes_what_autocast_gives(recipe):
    model = Model()
    fit(model, Float8Training(recipe), steps=1)
    seen = []
    model.fc1.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    x = torch.randn(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.fc1(x)
    explicit = model.fc1(x.bfloat16())
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 2
    assert torch.equal(mixed, explicit)
    assert model.fc1(x).dtype is torch.float32


@needs_rows
def test_says_which_layers_and_how(caplog):
    with caplog.at_level("INFO"):
        fit(Model(), Float8Training("rowwise", emulate=True), steps=1)
    assert (
        "Float8Training: 3 of 4 Linear layers in float8 (rowwise), GEMMs emulated in FP32 on cpu"
    ) in caplog.text


@pytest.mark.parametrize("emulate", [pytest.param(None, marks=needs_rows), False])
def test_a_device_without_scaled_mm(monkeypatch, caplog, emulate):
    def missing(*_args, **_kwargs):
        raise RuntimeError("no such kernel\nat line 3")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    config = Float8LinearConfig.from_recipe_name("rowwise")
    assert scaled_mm_fault(config, torch.device("cpu"), torch.bfloat16) == "no such kernel"
    callback = Float8Training("rowwise", emulate=emulate)
    if emulate is False:
        with pytest.raises(NumwatchError, match=r"cpu can not run the rowwise .* no such kernel"):
            fit(Model(), callback)
        return
    with caplog.at_level("INFO"):
        fit(Model(), callback)
    assert callback.emulated is True
    assert "emulated in FP32 on cpu (no such kernel)" in caplog.text


def test_a_second_fit_leaves_the_converted_model_alone():
    model, callback = Model(), Float8Training()
    fit(model, callback)
    modules = list(model.modules())
    fit(model, callback)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert [len(m._forward_pre_hooks) for m in modules if is_float8_linear(m)] == [1, 1, 1]
    assert callback.converted == ("fc1", "fc2", "head")


def test_the_converted_model_can_be_copied_and_pickled():
    model = Model()
    fit(model, Float8Training(), steps=1)
    x = torch.randn(16, 32)
    for twin in (copy.deepcopy(model.fc1), pickle.loads(pickle.dumps(model.fc1))):
        assert torch.equal(twin(x), model.fc1(x))


def test_accepted_by_the_other_namespace():
    lightning = pytest.importorskip("lightning.pytorch")
    assert isinstance(Float8Training(), lightning.Callback)
    assert isinstance(Float8Training(), pl.Callback)
