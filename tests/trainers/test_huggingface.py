"""`NumericsCallback` beyond the table: what it knows of a Trainer's steps, failures and batches."""

import itertools
import math
import subprocess
import sys
from importlib.metadata import requires

import pytest
import torch
from torch import nn
from trainer_cases import OLD_AUTOCAST
from trainer_huggingface import Watched, WithLoss, arguments, examples
from trainer_nets import PLAIN
from trainer_witness import Witness, are_same
from transformers import GPT2Config, GPT2LMHeadModel

import numwatch
from numwatch.callbacks.huggingface import NumericsCallback

EVERY = {"every_n_steps": 1, "strict": True, "summary": False}

pytestmark = pytest.mark.filterwarnings(f"ignore:{OLD_AUTOCAST}:FutureWarning")


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 8, "vocab_size": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, loss_type="ForCausalLM"))


def texts(n):
    """Of different lengths, so that the mean over tokens is not that over micro-batches."""
    torch.manual_seed(3)
    tokens = torch.randint(0, 32, (n, 8))
    labels = [row.masked_fill(torch.arange(8) > i % 5 + 2, -100) for i, row in enumerate(tokens)]
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def trainer_of(model, directory, *, precision="32-true", data=None, kind=Watched, **options):
    """A Trainer; what is not one of the callback's arguments goes to it."""
    own = {name: options.pop(name) for name in OWN if name in options}
    callback = NumericsCallback(**{**EVERY, **own})
    Watched.witness, Watched.precision = Witness(), precision
    torch.manual_seed(1)
    trainer = kind(
        model,
        arguments(directory, precision, **{"per_device_train_batch_size": 4, **options}),
        train_dataset=data or texts(16),
        callbacks=[callback],
    )
    return trainer, callback


OWN = ("shadow_every_n_steps", "stop_on", "every_n_steps")


WITHOUT = """
import sys, lightning.pytorch  # torchmetrics imports what it finds of them
for name in [name for name in sys.modules if name.startswith(("transformers", "accelerate"))]:
    del sys.modules[name]
sys.modules.update(transformers=None, accelerate=None)
from numwatch.callbacks import ApplyPlan, EmulatePrecision, Float8Training, NumericsMonitor
try:
    import numwatch.callbacks.huggingface
except ImportError as error:
    print(error)
"""


def test_transformers_is_needed_by_its_own_callback_alone():
    program = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    needed = "numwatch.callbacks.huggingface needs transformers and accelerate"
    extra = [one.partition(";")[0] for one in requires("numwatch") if one.endswith('"hf"')]
    words = " ".join(f"'{library}'" for library in sorted(extra, reverse=True))
    assert done.stdout.strip() == f"{needed}; type: pip install {words}"


class Rates(Watched):
    """Keeps the learning rate that each step is taken with."""

    rates: dict[int, float]

    def training_step(self, *args, **kwargs):
        self.rates = getattr(self, "rates", {})
        self.rates[self.state.global_step] = self.optimizer.param_groups[0]["lr"]
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_losses_and_rates_are_those_of_the_trainer(window, tmp_path):
    options = {"gradient_accumulation_steps": window, "num_train_epochs": 2}
    logged = {"logging_strategy": "steps", "logging_steps": 1, "warmup_steps": 2}
    trainer, callback = trainer_of(gpt2(), tmp_path, kind=Rates, **logged, **options)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    steps = numwatch.open_run(callback.directory).steps().to_pydict()
    assert callback.directory == tmp_path / "numwatch"
    assert steps["step"] == [log["step"] - 1 for log in logs]
    # Before transformers 5 it logged four digits.
    assert steps["loss"] == pytest.approx([log["loss"] for log in logs], abs=6e-5)
    assert steps["lr"] == list(trainer.rates.values())
    assert len(set(steps["lr"])) > 1
    assert steps["epoch"] == [math.ceil(log["epoch"]) - 1 for log in logs]
    # The last micro-batch of each window, counted in its epoch of four.
    assert steps["batch"] == [round(4 * log["epoch"] - 1) % 4 for log in logs]


def test_conv1d_layers_of_gpt2_are_seen_in_all_roles(tmp_path):
    model = gpt2()
    old = model.gradient_checkpointing_enable  # its name before transformers 5
    getattr(model, "activation_checkpointing_enable", old)()
    trainer, callback = trainer_of(model, tmp_path)
    trainer.train()
    slots = numwatch.open_run(callback.directory).tensors()["slot"].to_pylist()
    found = {slot for slot in slots if slot.startswith("transformer.h.0.mlp.c_fc:")}
    roles = ("input", "weight", "output", "grad_output", "grad_input", "grad_weight")
    assert found == {f"transformer.h.0.mlp.c_fc:{role}" for role in roles}


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_skipped_steps_and_their_culprits_are_known(optim, tmp_path):
    """A fused optimizer is called in a skipped step too, which accelerate takes for a real one."""

    class Overflowing(Watched):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19)
            self.weights = []

        def training_step(self, model, *args, **kwargs):
            self.weights.append(model.net[4].weight.detach().clone())
            return super().training_step(model, *args, **kwargs)

    torch.manual_seed(0)
    model = WithLoss(PLAIN.make())
    data = examples(PLAIN.data(2))
    trainer, callback = trainer_of(
        model, tmp_path, precision="16-mixed", data=data, kind=Overflowing, optim=optim
    )
    trainer.train()
    steps = numwatch.open_run(callback.directory).steps().to_pydict()
    weights = [*trainer.weights, model.net[4].weight]
    skips = [torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert steps["skipped"] == skips == sorted(skips, reverse=True)
    assert {True, False} == set(skips)
    assert "net.4.weight" in steps["nonfinite_parameters"][0]
    assert steps["loss_scale_before"] == [2.0**19 / 2 ** sum(skips[:n]) for n in range(8)]


def test_a_resumed_training_continues_the_record(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer, callback = trainer_of(gpt2(), tmp_path, **options)
    trainer.train()
    again, second = trainer_of(gpt2(), tmp_path, **options, num_train_epochs=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.directory == callback.directory
    steps = numwatch.open_run(callback.directory).steps().to_pydict()
    assert steps["step"] == list(range(8))
    assert steps["attempt"] == [0] * 4 + [1] * 4


class Failing(Watched):
    def training_step(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 2:
            raise ValueError("the user's")
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_failing_training_inside_the_callback_leaves_no_hooks_and_says_why(tmp_path, count_hooks):
    model = gpt2()
    trainer, callback = trainer_of(model, tmp_path, kind=Failing)
    with pytest.raises(ValueError, match="the user's"), callback:
        trainer.train()
    assert count_hooks(model) == 0
    run = numwatch.open_run(callback.directory)
    assert run.steps()["step"].to_pylist() == [0, 1]
    (event,) = [event for event in run.events() if event["kind"] == "exception"]
    assert (event["step"], event["text"]) == (2, "ValueError: the user's")


def test_without_it_the_next_training_takes_off_what_was_left(tmp_path, count_hooks):
    model = gpt2()
    trainer, _ = trainer_of(model, tmp_path, kind=Failing)
    with pytest.raises(ValueError, match="the user's"):
        trainer.train()
    trainer.__class__ = Watched
    trainer.train()
    assert count_hooks(model) == 0


class Planted(nn.Module):
    """Its forward fails in the third batch, in one operation."""

    def __init__(self):
        super().__init__()
        self.net = PLAIN.make()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, labels=None):
        logits = self.net(x)
        self.calls += 1
        if self.calls == 3:
            logits = logits * torch.log(-torch.ones(()))
        return {"loss": nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_origin_of_a_failure_is_found_and_a_capsule_kept(precision, tmp_path):
    data = examples(PLAIN.data(1))
    trainer, callback = trainer_of(Planted(), tmp_path, precision=precision, data=data)
    trainer.train()
    run = numwatch.open_run(callback.directory)
    (origin,) = [event for event in run.events() if event["kind"] == "origin"]
    assert (origin["step"], origin["phase"]) == (2, "forward")
    assert origin["operation"] == "aten.log.default"
    capsule = numwatch.load_capsule(callback.directory)
    assert capsule.facts["step"] == 2
    assert capsule.facts["autocast"] == (None if precision == "32-true" else "bfloat16")


def test_shadow_steps_are_in_fp32_and_change_nothing(tmp_path):
    """accelerate's autocast is part of the model's forward, and the shadow must not have it."""

    def trained(precision, every):
        torch.manual_seed(0)
        model = WithLoss(PLAIN.make())
        trainer, callback = trainer_of(
            model,
            tmp_path / f"{precision}-{every}",
            precision=precision,
            data=examples(PLAIN.data()),
            shadow_every_n_steps=every,
            gradient_accumulation_steps=2,
        )
        trainer.train()
        return dict(model.state_dict()), numwatch.open_run(callback.directory).shadows()

    bare, none = trained("bf16-mixed", 0)
    weights, low = trained("bf16-mixed", 1)
    _, whole = trained("32-true", 1)
    assert are_same(bare, weights)
    assert none.num_rows == 0
    assert set(whole["relative_error"].to_pylist()) == {0.0}
    assert min(low["relative_error"].to_pylist()) > 1e-4


def test_label_smoothing_has_no_loss_and_says_nothing(tmp_path):
    trainer, callback = trainer_of(gpt2(), tmp_path, label_smoothing_factor=0.1)
    trainer.train()
    steps = numwatch.open_run(callback.directory).steps().to_pydict()
    assert steps["loss"] == [None] * 4
    assert len(steps["grad_norm"]) == 4


def test_stop_on_critical_ends_the_training(tmp_path):
    data = examples(PLAIN.data(2))
    trainer, callback = trainer_of(
        Planted(), tmp_path, data=data, stop_on="critical", num_train_epochs=2
    )
    trainer.train()
    assert 3 <= trainer.state.global_step < 8
    assert numwatch.load_capsule(callback.directory).facts["step"] == 2


def test_callback_is_taken_as_a_class_too(tmp_path):
    torch.manual_seed(0)
    Watched.witness, Watched.precision = Witness(), "32-true"
    trainer = Watched(
        gpt2(), arguments(tmp_path), train_dataset=texts(4), callbacks=[NumericsCallback]
    )
    trainer.train()
    assert numwatch.open_run(tmp_path).steps().num_rows == 1
