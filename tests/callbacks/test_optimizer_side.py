"""The optimizer side under real Trainers, against a trace that knows nothing of numwatch."""

import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.report import summarize


def trainer_of(tmp_path, *callbacks, scaler=None, **options):
    if scaler is not None:
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**defaults, **options})


def monitor_of(tmp_path, **options):
    defaults = {"every_n_steps": 1, "summary": False, "strict": True, "dir": str(tmp_path)}
    return NumericsMonitor(**{**defaults, **options})


class Trace(pl.Callback):
    """Gradients as they are before clipping, and which optimizers moved their weights."""

    def __init__(self):
        self.norms, self.sums, self.skipped, self.scales = [], [], [], []

    def on_train_batch_start(self, trainer, *_):
        self.before = [_weights_of(optimizer) for optimizer in trainer.optimizers]
        self.squares, self.turns, self.now = {}, [], {}
        self.first_scale = trainer.scaler.get_scale() if trainer.scaler else 1.0

    def on_before_optimizer_step(self, trainer, module, optimizer):
        position = trainer.optimizers.index(optimizer)
        self.turns.append(position)
        fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        scale = trainer.scaler.get_scale() if trainer.scaler and fused else 1.0
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad.double() / scale for p in parameters if p.grad is not None]
        square = sum(gradient.square().sum().item() for gradient in gradients)
        self.squares.setdefault(position, square)
        own = {id(parameter) for parameter in parameters}
        for name, parameter in module.named_parameters():
            if id(parameter) in own and parameter.grad is not None:
                self.now[name] = (parameter.grad.double() / scale).sum().item()

    def on_train_batch_end(self, trainer, *_):
        if not self.turns:
            return  # within an accumulation window
        after = [_weights_of(optimizer) for optimizer in trainer.optimizers]
        moved = [not torch.equal(a, b) for a, b in zip(self.before, after, strict=True)]
        self.skipped.append([i for i in self.turns if not moved[i]])
        self.sums.append(self.now)
        self.norms.append(math.sqrt(sum(self.squares.values())))
        scale = trainer.scaler.get_scale() if trainer.scaler else 1.0
        self.scales.append((self.first_scale, scale))


def _weights_of(optimizer):
    return torch.cat([p.detach().flatten() for g in optimizer.param_groups for p in g["params"]])


class Overflowing(BoringModel):
    """Some batches have a loss so large that the scaled gradients leave FP32."""

    factors = (1.0, 1e36, 1.0, 1.0, 1e36, 1.0)
    optimizer = staticmethod(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))

    def training_step(self, batch, batch_idx):
        return (
            self.factors[batch_idx % len(self.factors)] * self.layer(batch).float().square().mean()
        )

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, len(self.factors) * 2), batch_size=2)

    def configure_optimizers(self):
        return self.optimizer(self.layer.parameters())


def assert_as_traced(run, trace):
    steps = run.steps()
    assert steps["skipped"].to_pylist() == [bool(one) for one in trace.skipped]
    found = [one or [] for one in steps["skipped_optimizers"].to_pylist()]
    assert found == trace.skipped
    assert steps["loss_scale_before"].to_pylist() == [before for before, _ in trace.scales]
    assert steps["loss_scale_after"].to_pylist() == [after for _, after in trace.scales]
    for number, traced in zip(steps["step"].to_pylist(), trace.sums, strict=True):
        rows = run.tensors(role="grad_weight", first=number, last=number).to_pylist()
        # Micro-batches merge into a row, whose sum is that of the accumulated gradient.
        found = {row["slot"]: row["sum"] / row["loss_scale"] for row in rows}
        expected = {
            f"{name.removesuffix('.weight')}:grad_weight": total
            for name, total in traced.items()
            if name.endswith(".weight") and math.isfinite(total)
        }
        assert {slot: found[slot] for slot in expected} == pytest.approx(expected, rel=1e-4)
    for norm, traced in zip(steps["grad_norm"].to_pylist(), trace.norms, strict=True):
        if math.isfinite(traced):
            assert norm == pytest.approx(traced, rel=1e-4)
        else:
            assert not math.isfinite(norm)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradients_and_skips_are_those_of_an_independent_trace(tmp_path, fused, accumulate, clip):
    if fused and clip:
        pytest.skip("Lightning refuses to clip what a fused optimizer unscales")
    model = Overflowing()
    model.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=fused)
    trace = Trace()
    trainer = trainer_of(
        tmp_path,
        trace,
        monitor_of(tmp_path),
        scaler=torch.amp.GradScaler("cpu", growth_interval=2),
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    trainer.fit(model)
    run = numwatch.open_run(tmp_path)
    assert_as_traced(run, trace)
    assert any(run.steps()["skipped"].to_pylist())
    culprits = [names for names in run.steps()["nonfinite_parameters"].to_pylist() if names]
    assert len(culprits) == sum(run.steps()["skipped"].to_pylist())
    assert all(set(names) <= {"layer.weight", "layer.bias"} for names in culprits)
    # Updates are those of steps that were taken, and of no other.
    taken = {s for s, skip in enumerate(run.steps()["skipped"].to_pylist()) if not skip}
    recorded = set(run.updates()["step"].to_pylist())
    steps = run.steps()["step"].to_pylist()
    assert recorded >= {steps[i] for i in taken}
    if not fused:
        assert recorded == {steps[i] for i in taken}


def test_boring_model_overflowing_at_65536_is_one_skip_with_its_culprit_named(tmp_path, capsys):
    class Once(Overflowing):
        factors = (1.0,) * 4

        def training_step(self, batch, batch_idx):
            # The FP16 loss has the scale itself for gradient: 65536 is inf there, 32768 is not.
            return self.layer(batch).mean()

    trainer = trainer_of(
        tmp_path,
        monitor_of(tmp_path, every_n_steps=50, amax_every_n_steps=0, summary=True),
        scaler=torch.amp.GradScaler("cpu"),
    )
    trainer.fit(Once())
    run = numwatch.open_run(tmp_path)
    steps = run.steps()
    assert steps["skipped"].to_pylist() == [True, False, False, False]
    assert steps["loss_scale_after"].to_pylist() == [32768.0] * 4
    assert steps["nonfinite_parameters"].to_pylist()[0] == ["layer.weight", "layer.bias"]
    (overflow,) = [event for event in run.events() if event["kind"] == "overflow"]
    assert overflow["step"] == 0
    assert overflow["parameters"] == ["layer.weight", "layer.bias"]
    assert "1 of 4 steps, last 0" in (printed := capsys.readouterr().out)
    assert "layer" in next(line for line in printed.splitlines() if line.startswith("skipped"))


class TwoOptimizers(pl.LightningModule):
    """Manual optimization as of a GAN: two nets, two optimizers, gradients cleared at once."""

    def __init__(self, every=1):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)
        self.every = every
        self.factors = iter([0.01, 1e36, 0.01, 0.01, 0.01, 0.01])

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        factor = next(self.factors)
        loss = factor * self.critic(self.generator(batch).detach()).float().square().mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        if batch_idx % self.every == 0:
            self.toggle_optimizer(second)
            loss = self.critic(self.generator(batch)).float().square().mean()
            second.zero_grad()
            self.manual_backward(loss * (1e36 if batch_idx == 4 else 0.01))
            second.step()
            self.untoggle_optimizer(second)

    def train_dataloader(self):
        return DataLoader(torch.randn(12, 4), batch_size=2)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.critic.parameters(), lr=1e-2),
            torch.optim.SGD(self.generator.parameters(), lr=1e-2),
        )


@pytest.mark.parametrize("every", [1, 2])
def test_a_gan_s_two_optimizers_each_have_their_skips_and_scales(tmp_path, every):
    trace = Trace()
    trainer = trainer_of(tmp_path, trace, monitor_of(tmp_path), scaler=torch.amp.GradScaler("cpu"))
    trainer.fit(TwoOptimizers(every))
    run = numwatch.open_run(tmp_path)
    assert_as_traced(run, trace)
    steps = run.steps()
    names = steps["nonfinite_parameters"].to_pylist()
    assert names[1] == ["critic.weight", "critic.bias"]
    assert names[4] == ["generator.weight", "generator.bias"]
    assert [i for i, one in enumerate(names) if one] == [1, 4]
    # In the second batch the critic's scale fell before the generator's backward.
    if every == 1:
        assert steps["loss_scales"].to_pylist()[1] == [65536.0, 32768.0]
        rows = run.tensors(slot="generator:grad_output", first=2, last=2).to_pylist()
        assert rows[0]["loss_scale"] == 32768.0


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_training_step_that_returns_none_is_a_skip_without_an_inf(tmp_path):
    class Sometimes(Overflowing):
        factors = (0.01,) * 4

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 2 else loss

    trainer = trainer_of(tmp_path, monitor_of(tmp_path), scaler=torch.amp.GradScaler("cpu"))
    trainer.fit(Sometimes())
    steps = numwatch.open_run(tmp_path).steps()
    assert steps["skipped"].to_pylist() == [False, False, True, False]
    assert steps["found_inf"].to_pylist() == [False] * 4
    assert steps["nonfinite_parameters"].to_pylist()[2] in (None, [])


def test_the_end_at_zero_is_announced_long_before_it_comes(tmp_path, capsys):
    class AllInf(Overflowing):
        factors = (float("inf"),) * 60

    trainer = trainer_of(
        tmp_path,
        monitor_of(tmp_path, every_n_steps=50, summary=True),
        scaler=torch.amp.GradScaler("cpu"),
    )
    trainer.fit(AllInf())
    run = numwatch.open_run(tmp_path)
    after = run.steps()["loss_scale_after"].to_pylist()
    assert (after[0], after[39]) == (32768.0, 2.0**-24)
    (collapse,) = [event for event in run.events() if event["kind"] == "collapse"]
    assert collapse["step"] < 20
    assert collapse["zero_at_step"] == 165  # facts: 0.0 after 166 steps, of which this is the last
    assert capsys.readouterr().out.count("it reaches 0 at step 165") >= 2  # at once, and in the end


def test_fp16_adam_is_reported_at_its_first_step_before_the_weights_are_inf(tmp_path):
    class Tiny(Overflowing):
        optimizer = staticmethod(lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
        factors = (1e-2, 1e-2)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch.half(), batch_idx)

    trainer = trainer_of(tmp_path, monitor_of(tmp_path), precision="16-true", max_steps=2)
    trainer.fit(Tiny())
    run = numwatch.open_run(tmp_path)
    states = [s for s in run.states(last=0).to_pylist() if s["slot"] == "layer.weight:exp_avg_sq"]
    assert (states[0]["dtype"], states[0]["eps"], states[0]["eps_stored"]) == ("float16", 1e-8, 0.0)
    assert states[0]["vanished"] > 0.5
    weights = run.tensors(slot="layer:weight").to_pylist()
    assert weights[0]["neginfs"] + weights[0]["posinfs"] + weights[0]["nans"] == 0
    assert weights[1]["neginfs"] + weights[1]["posinfs"] + weights[1]["nans"] > 0


def test_lbfgs_calls_its_closure_often_and_skips_nothing(tmp_path):
    class Closures(Overflowing):
        factors = (1.0,) * 3
        optimizer = staticmethod(lambda p: torch.optim.LBFGS(p, lr=1e-2, max_iter=3))

    trainer_of(tmp_path, monitor_of(tmp_path)).fit(Closures())
    steps = numwatch.open_run(tmp_path).steps()
    assert steps["skipped"].to_pylist() == [False] * 3
    assert steps["loss_scales"].to_pylist() in ([None] * 3, [[]] * 3)


def test_an_error_in_an_optimizer_hook_ends_the_watching_and_not_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr("numwatch.taps.updates.UpdateTaps.after_step", fail)

    class Behind(pl.Callback):
        def on_train_start(self, trainer, _):
            self.seen = 0
            trainer.optimizers[0].register_step_post_hook(self.count)

        def count(self, *_):
            self.seen += 1

    behind, model = Behind(), Overflowing()
    with pytest.warns(RuntimeWarning, match="the training goes on"):
        trainer_of(tmp_path, monitor_of(tmp_path, strict=False), behind).fit(model)
    assert behind.seen == 6
    left = list(model.trainer.optimizers[0]._optimizer_step_post_hooks.values())
    assert left == [behind.count]


@pytest.mark.parametrize("every", [1, 1000])
def test_the_layer_where_the_overflow_began_is_named_first(tmp_path, every):
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, gradient):
            return gradient * float("inf")

    class Layers(Overflowing):
        def __init__(self):
            super().__init__()
            self.first, self.mid, self.last = (nn.Linear(32, 32, bias=False) for _ in range(3))

        def training_step(self, batch, batch_idx):
            x = self.mid(self.first(batch))
            x = Overflow.apply(x) if batch_idx == 1 else x
            return 1e-3 * self.last(x).float().square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    monitor = monitor_of(tmp_path, every_n_steps=every, amax_every_n_steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer_of(tmp_path, monitor, scaler=scaler, max_steps=2).fit(Layers())
    skips = summarize(numwatch.open_run(tmp_path)).skips
    assert skips.last == 1
    assert skips.parameters == ("mid.weight", "first.weight")
    if every == 1:
        assert skips.nonfinite[0][0] == "mid:grad_output"
    else:
        assert skips.nonfinite is None
