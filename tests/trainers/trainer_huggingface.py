"""Runs under the Trainer of Hugging Face's transformers."""

import os

import torch
from torch import nn
from trainer_data import BATCH, loss_of
from trainer_lightning import CADENCE
from trainer_loops import TRUE, model_of
from trainer_witness import Trained, Witness
from transformers import Trainer, TrainingArguments

from numwatch.callbacks.huggingface import NumericsCallback


class WithLoss(nn.Module):
    """A net that returns its loss, as transformers' models do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels=None):
        dtype = next(self.parameters()).dtype
        loss = loss_of(self.net, (x.to(dtype) if x.is_floating_point() else x, labels))
        return {"loss": loss}


class Watched(Trainer):
    """A Trainer that a witness follows; FP16 on a CPU has accelerate's ways, but a CPU's scaler."""

    witness: Witness
    precision = "32-true"

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.precision == "16-mixed":
            self.accelerator.scaler = torch.amp.GradScaler("cpu")
            self.accelerator.native_amp = True
            self.accelerator.state._mixed_precision = "fp16"

    def training_step(self, *args, **kwargs):
        self.witness.begin()
        loss = super().training_step(*args, **kwargs)
        self.witness.end(loss * self.args.gradient_accumulation_steps)
        return loss


def arguments(directory, precision="32-true", **options):
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # transformers 4 leaves it to the next one
    return TrainingArguments(
        output_dir=str(directory),
        **{
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 1,
            "save_strategy": "no",
            "logging_strategy": "no",
            "bf16": precision in ("bf16-mixed", "fp8"),
            "adam_epsilon": 1e-4,
            "learning_rate": 1e-2,
            **options,
        },
    )


def examples(dataset):
    return [{"x": x, "labels": y} for x, y in dataset]


def train(net, **options):
    """Returns what trains a net in a cell."""

    def run(setting):
        model = model_of(net, setting.precision, WithLoss)
        model.to(TRUE.get(setting.precision, torch.float32))
        witness = Witness()
        witness.follow(model)
        Watched.witness, Watched.precision = witness, setting.precision
        callback = NumericsCallback(dir=str(setting.record()), **CADENCE)
        trainer = Watched(
            model,
            arguments(setting.directory, setting.precision, **options),
            train_dataset=examples(net.data()),
            eval_dataset=examples(net.data(1)),
            callbacks=[callback] if setting.watched else [],
        )
        trainer.train()
        optimizers = [trainer.optimizer.optimizer]
        return Trained(model, optimizers, witness, (setting.record(),) if setting.watched else ())

    return run
