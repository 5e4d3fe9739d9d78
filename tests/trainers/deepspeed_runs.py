"""Trains under DeepSpeed on the CPU, bare and watched, and prints what the engine said as JSON.

    python deepspeed_runs.py DIRECTORY loop|lightning|huggingface STAGE PRECISION MICRO_BATCHES

Each rank is a process with the variables that `torchrun` sets.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass

import deepspeed
import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import deepspeed as strategies
from torch import nn

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.callbacks.huggingface import NumericsCallback

STEPS, BROKEN = 8, 4
"""How many steps there are, and the one whose loss is inf."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SCALE = {"initial_scale_power": 20, "loss_scale_window": 2}


@dataclass
class Told:
    """What the engine says of a step."""

    scale: float
    applied: bool
    norm: float


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(80, 80), nn.ReLU(), nn.Dropout(0.1), nn.Linear(80, 80))


def told_by(engine):
    optimizer = engine.optimizer
    return Told(
        float(getattr(optimizer, "loss_scale", 1.0)),
        engine.was_step_applied(),
        float(engine.get_global_grad_norm() or 0.0),
    )


def batches(micro_batches):
    torch.manual_seed(int(os.environ["RANK"]))
    return [torch.randn(8, 80) for _ in range(STEPS * micro_batches)]


def loop(directory, stage, precision, micro_batches):
    """Returns what the engine told of each step, and the weights."""
    model = net()
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": micro_batches,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True} | (SCALE if precision == "fp16" else {})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    watch = None
    if directory:
        options = {"every_n_steps": 1, "summary": False, "strict": True}
        watch = numwatch.watch(engine, dir=directory, **options)
        watch.__enter__()
    told = []
    for i, x in enumerate(batches(micro_batches)):
        loss = engine(x.to(DTYPES[precision])).float().square().mean()
        if i // micro_batches == BROKEN:
            loss = loss * float("inf")
        engine.backward(loss)
        ends = engine.is_gradient_accumulation_boundary()
        engine.step()
        if watch:
            watch.add_loss(loss.detach() / micro_batches)
        if ends:
            told.append(told_by(engine))
            if watch:
                watch.step()
    if watch:
        watch.__exit__(None, None, None)
    return told, weights_of(engine)


class Module(pl.LightningModule):
    def __init__(self, micro_batches):
        super().__init__()
        self.net, self.micro_batches, self.told = net(), micro_batches, []

    def training_step(self, batch, index):
        loss = self.net(batch[0]).float().square().mean()
        return loss * float("inf") if index // self.micro_batches == BROKEN else loss

    def on_train_batch_end(self, _outputs, _batch, index):
        if (index + 1) % self.micro_batches == 0:
            self.told.append(told_by(self.trainer.model))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


class OnCpu(strategies.DeepSpeedStrategy):
    """Lightning starts DeepSpeed on CUDA alone, for no reason that the engine has."""

    root_device = property(lambda _: torch.device("cpu", 0))


def lightning(directory, stage, precision, micro_batches):
    """Does the same in a Trainer."""
    module = Module(micro_batches)
    data = torch.utils.data.TensorDataset(torch.cat(batches(micro_batches)))
    monitor = NumericsMonitor(dir=directory, every_n_steps=1, summary=False, strict=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=OnCpu(stage=stage, process_group_backend="gloo", **SCALE),
        precision={"fp16": "16-mixed", "bf16": "bf16-mixed", "fp32": "32-true"}[precision],
        max_epochs=1,
        callbacks=[monitor] if directory else [],
        accumulate_grad_batches=micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    return module.told, weights_of(trainer.model)


class Scored(nn.Module):
    """A model as transformers has them: its forward returns the loss."""

    def __init__(self, micro_batches):
        super().__init__()
        self.net, self.micro_batches, self.seen = net(), micro_batches, 0

    def forward(self, x):
        loss = self.net(x.to(self.net[0].weight.dtype)).float().square().mean()
        broken = self.seen // self.micro_batches == BROKEN
        self.seen += 1
        return {"loss": loss * float("inf") if broken else loss}


class Listener(transformers.TrainerCallback):
    def __init__(self):
        self.trainer, self.told = None, []

    def on_step_end(self, *_args, **_kwargs):
        self.told.append(told_by(self.trainer.model_wrapped))


def huggingface(directory, stage, precision, micro_batches):
    """Does the same in the Trainer of transformers."""
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        precision: {"enabled": True} | (SCALE if precision == "fp16" else {}),
    }
    arguments = transformers.TrainingArguments(
        output_dir=directory or "none",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=micro_batches,
        max_steps=STEPS,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        deepspeed=config,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{precision: True},
    )
    listener = Listener()
    monitor = NumericsCallback(dir=directory, every_n_steps=1, summary=False, strict=True)
    trainer = transformers.Trainer(
        Scored(micro_batches),
        arguments,
        train_dataset=[{"x": x} for x in torch.cat(batches(micro_batches))],
        callbacks=[listener, *([monitor] if directory else [])],
    )
    listener.trainer = trainer
    trainer.train()
    return listener.told, weights_of(trainer.model_wrapped)


def weights_of(engine):
    """The weights, whole: ZeRO-3 has parts of them."""
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return [weight.detach().float().tolist() for weight in engine.module.parameters()]


def main():
    directory, how, stage, precision, micro_batches = sys.argv[1:]
    type(deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda _: True
    strategies.CUDAAccelerator = CPUAccelerator
    strategies._validate_device_index_selection = lambda *_: None
    run = {"loop": loop, "lightning": lightning, "huggingface": huggingface}[how]
    arguments = int(stage), precision, int(micro_batches)
    _, bare = run(None, *arguments)
    told, watched = run(directory, *arguments)
    sys.stdout.write(json.dumps({"told": list(map(asdict, told)), "same": bare == watched}) + "\n")


if __name__ == "__main__":
    main()
