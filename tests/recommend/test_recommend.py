"""Recommendations for real runs, and the runs under them."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import numwatch
from numwatch.callbacks import EmulatePrecision, NumericsMonitor
from numwatch.callbacks.training import training_arguments
from numwatch.errors import NumwatchError
from numwatch.plan import TARGETS
from numwatch.recommend import recommend
from numwatch.report.plan_lines import plan_lines

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Classifier(pl.LightningModule):
    """Embedding, norm, three Linears and a convolution's worth of odd layers."""

    def __init__(self, lr=1e-3, gain=1.0, optimizer="adam"):
        super().__init__()
        self.tokens = nn.Embedding(50, 64)
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 128)
        self.mid = nn.Linear(128, 64)
        self.odd = nn.Linear(64, 36)
        self.small = nn.Linear(36, 8)
        self.head = nn.Linear(8, 50)
        self.lr, self.gain, self.optimizer = lr, gain, optimizer

    def training_step(self, batch, _):
        (codes,) = batch
        x = self.norm(self.tokens(codes))
        x = self.mid(torch.relu(self.up(x)))
        x = self.small(torch.relu(self.odd(x)))
        logits = self.head(x).float()
        loss = nn.functional.cross_entropy(logits, (codes * 7) % 50)
        return self.gain * loss

    def configure_optimizers(self):
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(model, directory, *callbacks, steps=40, **arguments):
    codes = torch.randint(0, 50, (64 * steps,), generator=torch.Generator().manual_seed(0))
    monitor = NumericsMonitor(5, 1, dir=str(directory), summary=False, strict=True)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, monitor],
        **arguments,
    )
    trainer.fit(model, DataLoader(TensorDataset(codes), batch_size=64))
    return numwatch.open_run(directory)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    return fit(Classifier(), tmp_path_factory.mktemp("run"), precision="bf16-mixed")


def test_what_stays_and_why(run):
    modules = {module.module: module for module in recommend(run, "fp8").modules}
    assert list(modules) == ["up", "mid", "odd", "small", "head"]
    assert not modules["up"].kept  # an embedding comes before it
    assert not modules["mid"].kept
    assert modules["odd"].reason == "64 features, 36 outputs: no multiples of 16"
    assert modules["small"].reason == "narrow: 36 features, 8 outputs"
    assert "narrow" in modules["head"].reason


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_planned_saved_and_trained(run, target, tmp_path):
    plan = recommend(run, target)
    plan.save(tmp_path / "plan.yaml")
    assert numwatch.plan.load_plan(tmp_path / "plan.yaml") == plan
    assert plan.source["precision"] == "bf16-mixed"
    assert plan_lines(plan, reasons=True)
    if target == "amp":
        assert not plan.modules
        return
    pl.seed_everything(0, verbose=False)
    again = fit(Classifier(), tmp_path, EmulatePrecision(plan), steps=20, precision="bf16-mixed")
    losses = again.steps()["loss"].to_pylist()
    assert losses[-1] < losses[0]
    rows = [row for row in again.tensors("up:weight").to_pylist() if row["cast_format"]]
    assert len(rows) == 4
    assert all(row["cast_saturated"] <= 0.1 * row["numel"] for row in rows)


def test_int8_weights_leave_activations_alone(run):
    plan = recommend(run, "int8-weights")
    assert {role for _, role, _ in plan.operands()} == {"weight"}
    assert all(operand.predicted.sqnr > 25 for _, _, operand in plan.operands())


def test_reasons_tell_the_alternative(run):
    plan = recommend(run, "fp8")
    reason = next(o.reason for _, role, o in plan.operands() if role == "grad_output")
    assert "would flush" in reason
    assert "median error" in reason


def fp16(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return [MixedPrecision("16-mixed", "cpu", scaler)]


def flushed(run):
    """The largest share that FP16 flushed of any gradient, as far as the tail tells."""
    from numwatch.report.summary import summarize

    lines = summarize(run, worst=100).tensors
    return max(
        (line.flushed.value for line in lines if "grad" in line.slot and line.flushed), default=0.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0**40])
def test_an_fp16_run_with_a_bad_scale_gets_one_that_fits(scale, tmp_path):
    """Too low it flushes, too high it skips; with the recommended one it does neither."""
    model = {"gain": 1e-3, "lr": 1e-2, "optimizer": "sgd"}
    pl.seed_everything(0, verbose=False)
    bad = fit(Classifier(**model), tmp_path / "bad", plugins=fp16(scale))
    skips = sum(bad.steps()["skipped"].to_pylist())
    assert skips > 1 if scale > 1 else flushed(bad) > 0.01
    plan = recommend(bad, "amp")
    assert plan.training.compute == "fp16"
    given = {"plugins": fp16(scale), "accelerator": "cpu"}
    pl.seed_everything(0, verbose=False)
    good = fit(
        Classifier(**model), tmp_path / "good", plugins=training_arguments(plan, given)["plugins"]
    )
    assert sum(good.steps()["skipped"].to_pylist()) <= 1
    assert flushed(good) < 0.01
    assert good.steps()["loss_scale_before"][0].as_py() == plan.training.loss_scale.init


@pytest.mark.slow
def test_swallowing_weights_get_masters_and_the_run_recovers(tmp_path):
    def trained(name, **arguments):
        pl.seed_everything(0, verbose=False)
        model = Classifier(lr=2e-5)
        return fit(model, tmp_path / name, steps=150, **arguments)

    low = trained("low", precision="bf16-true")
    plan = recommend(low, "amp")
    assert plan.training.weights == "fp32"
    assert "stochastic rounding would let" in plan.training.reasons["weights"]
    masters = trained("masters", **training_arguments(plan, {"precision": "bf16-true"}))
    assert "mixed" in masters.precision
    before, after = (r.steps()["loss"].to_pylist() for r in (low, masters))
    progress = [losses[0] - sum(losses[-10:]) / 10 for losses in (before, after)]
    assert progress[1] > 1.5 * max(progress[0], 1e-9)


def test_a_target_that_is_none(run):
    with pytest.raises(NumwatchError, match=r"target is one of amp, fp8.*got 'fp9'.*'fp8'"):
        recommend(run, "fp9")


def test_a_run_without_operands_or_steps(tmp_path):
    model = nn.Sequential(nn.Embedding(4, 4))
    with numwatch.watch(model, dir=tmp_path / "a", summary=False, every_n_steps=1) as watch:
        with pytest.raises(NumwatchError, match="holds no step"):
            recommend(tmp_path / "a", "fp8")
        model(torch.zeros(3, dtype=torch.int64)).sum().backward()
        watch.step()
    with pytest.raises(NumwatchError, match="no GEMM operand seen in full"):
        recommend(tmp_path / "a", "fp8")
    plan = recommend(tmp_path / "a", "amp")
    assert plan.training.compute == "bf16"


def test_json_of_a_plan_is_strict(run):
    from numwatch.plan.exports import export

    content = json.loads(export(recommend(run, "nvfp4"), "json"))
    assert content["target"] == "nvfp4"
    assert math.isfinite(content["modules"]["up"]["operands"]["weight"]["predicted"]["sqnr"])


def watched(directory, model, x, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with numwatch.watch(
        model, optimizer, dir=directory, summary=False, every_n_steps=1, strict=True, **options
    ) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            watch.step()
    return {module.module: module for module in recommend(directory, "fp8").modules}


class Tail(nn.Module):
    """A head, and behind it in order of registration what is never called."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(32, 64)
        self.layer = nn.TransformerEncoderLayer(64, 2, 64, batch_first=True, dropout=0.0)
        self.head = nn.Linear(64, 64)
        self.unused = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)))


def test_the_last_layer_is_the_last_that_is_called(tmp_path):
    modules = watched(tmp_path, Tail(), torch.randn(4, 8, 32))
    assert modules["head"].reason.startswith("last layer")
    assert modules["embed"].reason.startswith("first layer")
    assert "never called" in modules["unused"].reason
    assert not modules["layer.linear1"].kept


def test_norms_and_activations_that_are_watched_too_are_no_products(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 64)
    )
    modules = watched(tmp_path, model, torch.randn(16, 64), include=["*"])
    assert list(modules) == ["0", "3", "4"]
    assert [module.kept for module in modules.values()] == [True, False, True]


def test_an_operand_that_is_zero_throughout_is_said_so(tmp_path):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    nn.init.zeros_(model[2].weight)
    model[2].weight.requires_grad_(False)
    modules = watched(tmp_path, model, torch.randn(16, 64))
    assert "grad_output was zero throughout" in modules["1"].reason


def test_amp_leaves_fp16_that_was_left(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with numwatch.watch(model, dir=tmp_path, summary=False, every_n_steps=1) as watch:
        for _ in range(2):
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.full((4, 8), 60000.0) * 10).float().sum()
            loss.nan_to_num(1.0).backward()
            watch.step()
    training = recommend(tmp_path, "amp").training
    assert training.compute == "bf16"
    assert "FP16" in training.reasons["compute"]


def test_low_weights_go_with_their_own_compute_format(tmp_path):
    pl.seed_everything(0, verbose=False)
    run = fit(Classifier(lr=0.3, optimizer="sgd"), tmp_path, precision="bf16-true")
    for target in ("amp", "fp8"):
        training = recommend(run, target).training
        assert training.weights in ("fp32", training.compute)
        assert training.loss_scale is None or training.weights == "fp32"
