"""Proofs: a plan that holds, one that fails, and what is told of either."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numwatch.callbacks.prove import prove
from numwatch.errors import NumwatchError
from numwatch.formats import get_format
from numwatch.plan import LossScale, ModulePlan, Operand, Plan, Training
from numwatch.recipes.spec import parse_recipe
from numwatch.recommend.proof import Proof, spread
from numwatch.report.plain import plain
from numwatch.report.proof_lines import proof_lines

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Net(pl.LightningModule):
    """A small regression with dropout, so that both runs must meet the same random numbers."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 16)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(self.dropout(torch.relu(self.fc1(x))))))

    def training_step(self, batch, _):
        x, y = batch
        return (self(x).float() - y).square().mean()

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", (self(x).float() - y).square().mean())
        self.log("other", 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make():
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, torch.tanh(x[:, :16]))
    loader = DataLoader(data, 64, shuffle=True)
    return Net(), loader, DataLoader(data, 64), {"accelerator": "cpu", "precision": "bf16-mixed"}


def planned(gradient="current", training=None):
    def operand(fmt, recipe="current"):
        return Operand(get_format(fmt), parse_recipe(recipe))

    operands = {
        "input": operand("e4m3"),
        "weight": operand("e4m3"),
        "grad_output": operand("e4m3", gradient),
    }
    modules = tuple(ModulePlan(name, operands) for name in ("fc1", "fc2"))
    return Plan("fp8", training or Training(), modules)


@pytest.mark.parametrize("real", [False, True])
def test_a_plan_that_holds(real, tmp_path):
    seen = []
    proof = prove(
        planned(),
        make,
        out=tmp_path,
        seeds=2,
        steps=60,
        tolerance=0.05,
        real=real,
        progress=seen.append,
    )
    assert proof.verdict == "holds"
    assert proof.figure == "val_loss"
    assert (proof.steps, proof.seeds) == (60, (0, 1))
    assert seen == ["baseline, seed 0", "plan, seed 0", "baseline, seed 1", "plan, seed 1"]
    assert {slot.slot for slot in proof.slots} == {
        f"{module}:{role}" for module in ("fc1", "fc2") for role in planned().modules[0].operands
    }
    for slot in proof.slots:
        assert slot.saturated == 0.0
        assert slot.flushed == pytest.approx(slot.predicted_flushed.value, abs=0.02)
    text = "\n".join(line.plain for line in proof_lines(proof))
    assert "holds" in text
    assert ("in its real formats" if real else "emulated") in text
    json.dumps(plain(proof), allow_nan=False)


def test_a_plan_that_flushes_its_gradients_fails(tmp_path):
    proof = prove(planned("static"), make, out=tmp_path, seeds=2, steps=60)
    assert proof.verdict == "fails"
    worst = proof.slots[0]
    assert worst.slot.endswith("grad_output")
    assert worst.flushed > 0.5
    assert worst.predicted_flushed.value > 0.5
    assert "fails" in proof_lines(proof)[-1].plain


def test_nothing_planned_is_bitwise_the_baseline(tmp_path):
    proof = prove(Plan("fp8"), make, out=tmp_path, seeds=1, steps=20)
    assert proof.plan == proof.baseline
    assert proof.rises == (0.0,)


def test_the_training_part_of_a_plan_is_used(tmp_path):
    import numwatch

    scale = LossScale(2.0**10, None)
    amp = Plan("amp", Training("fp16", "fp32", loss_scale=scale))
    prove(amp, make, out=tmp_path, seeds=1, steps=10)
    run = numwatch.open_run(tmp_path / "plan-0")
    assert run.precision == "16-mixed"
    assert set(run.steps()["loss_scale_after"].to_pylist()) == {2.0**10}
    assert numwatch.open_run(tmp_path / "baseline-0").precision == "bf16-mixed"


def test_metrics_are_chosen_by_name(tmp_path):
    proof = prove(planned(), make, out=tmp_path / "a", seeds=1, steps=5, metric="other")
    assert (proof.figure, proof.rise) == ("other", 0.0)
    with pytest.raises(NumwatchError, match=r"no metric 'val_los'.*did you mean 'val_loss'"):
        prove(planned(), make, out=tmp_path / "b", seeds=1, steps=5, metric="val_los")


def test_without_validation_the_loss_at_the_end_is_compared(tmp_path):
    def alone():
        net, loader, _, arguments = make()
        return net, loader, None, arguments

    assert prove(planned(), alone, out=tmp_path, seeds=1, steps=20).figure == "loss at the end"


@pytest.mark.parametrize("made", [None, (), 3, (nn.Linear(2, 2),)])
def test_what_is_no_subject(made, tmp_path):
    with pytest.raises(NumwatchError, match="what is proved is a LightningModule, or a tuple"):
        prove(planned(), lambda: made, out=tmp_path, seeds=1, steps=5)


def proof(baseline, plan, tolerance=0.01):
    return Proof(
        figure="loss",
        seeds=tuple(range(len(baseline))),
        baseline=tuple(baseline),
        plan=tuple(plan),
        steps=1,
        tolerance=tolerance,
        slots=(),
        seconds={"baseline": 1.0, "plan": 2.0},
        emulated=True,
    )


@pytest.mark.parametrize(
    ("baseline", "plan", "verdict"),
    [
        ((1.0, 2.0), (1.005, 2.01), "holds"),
        ((1.0, 2.0), (0.5, 1.0), "holds"),
        ((1.0, 1.0, 1.0), (1.05, 1.06, 1.05), "fails"),
        ((1.0, 1.0, 1.0), (1.0, 1.1, 0.99), "undecided"),
        ((1.0, 1.0), (1.0, math.nan), "fails"),
        ((1.0, 1.0), (1.0, math.inf), "fails"),
        ((math.nan, 1.0), (1.0, 1.0), "undecided"),
        ((1.0,), (1.02,), "fails"),
        ((1.0,), (1.009,), "holds"),
        ((0.0,), (1.0,), "fails"),
    ],
)
def test_verdicts(baseline, plan, verdict):
    found = proof(baseline, plan)
    assert found.verdict == verdict
    assert proof_lines(found)[-1].plain.startswith(verdict)


def test_spread_is_the_sample_deviation():
    assert spread((1.0, 3.0)) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread((1.0,)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("here", "there", "rise"),
    [(-99.6, -99.5, 0.1 / 99.6), (0.0, 0.0, 0.0), (0.0, 1.0, math.inf), (2.0, 1.0, -0.5)],
)
def test_a_rise_has_the_sign_of_what_is_worse(here, there, rise):
    assert proof((here,), (there,)).rise == pytest.approx(rise)


def test_a_baseline_that_diverged_is_said_so():
    assert "the baseline itself diverged" in proof_lines(proof((math.nan,), (1.0,)))[-1].plain


@pytest.mark.parametrize(
    "extra",
    [
        {"callbacks": None, "plugins": None},
        {"callbacks": pl.callbacks.ModelCheckpoint()},
        {"callbacks": [pl.callbacks.LearningRateMonitor(), pl.callbacks.TQDMProgressBar()]},
        {"precision": None, "plugins": pl.plugins.HalfPrecision("bf16-true")},
    ],
)
def test_arguments_that_trainers_take_are_taken(extra, tmp_path):
    def made():
        net, loader, validation, arguments = make()
        extra_now = {**extra, "default_root_dir": str(tmp_path)}
        return net, loader, validation, {**arguments, **extra_now}

    plan = planned(training=Training("bf16", "bf16" if "precision" in extra else "fp32"))
    assert prove(plan, made, out=tmp_path, seeds=1, steps=4).figure == "val_loss"


def test_a_second_proof_in_the_same_place_counts_its_own_steps(tmp_path):
    prove(planned(), make, out=tmp_path, seeds=1, steps=12)
    assert prove(planned(), make, out=tmp_path, seeds=1, steps=5).steps == 5


def test_what_the_plan_can_not_be_is_refused_before_anything_trains(tmp_path):
    mx = Plan(
        "int8-weights",
        modules=(ModulePlan("fc1", {"weight": planned().modules[0].operands["weight"]}),),
    )
    with pytest.raises(NumwatchError, match="leaves out input"):
        prove(mx, make, out=tmp_path / "none", seeds=1, steps=4, real=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(NumwatchError, match="one seed or more"):
        prove(planned(), make, out=tmp_path, seeds=0)
