"""A Lightning module with all that a step may leave behind, its fit, and what it did leave."""

import importlib
import random

import numpy as np
import torch
import torchmetrics
from shadow_harness import Compared
from torch import nn
from torch.utils.data import DataLoader, Dataset

from numwatch.callbacks.shadow import shadow_step

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")


class Texts(Dataset):
    """Draws its items at random and keeps what it gave, so that a batch too many shows."""

    def __init__(self, n=16):
        self.n = n
        self.given = []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.given.append(index)
        noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        return torch.randn(8) + noise, index % 4


def classifier(namespace="pytorch_lightning", **changes):
    """BatchNorm, dropout, a metric, a counter, logging, and a batch that is changed in place.

    Smooth: a ReLU's gradient is another where rounding crosses zero.
    """
    pl = importlib.import_module(namespace)

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(8, 32), nn.BatchNorm1d(32), nn.SiLU(inplace=True), nn.Dropout(0.3)
            )
            self.head = nn.Linear(32, 4)
            self.accuracy = torchmetrics.MeanMetric()
            self.steps = 0
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def on_train_batch_start(self, batch, batch_idx):
            self.started = batch_idx

        def training_step(self, batch, batch_idx):
            return self.loss(batch, batch_idx)

        def loss(self, batch, batch_idx):
            x, y = batch
            assert self.started == batch_idx
            self.steps += 1
            self.seen += 1
            x.mul_(1 + random.random() + np.random.rand())  # noqa: NPY002
            logits = self.head(self.body(x)).float()
            loss = nn.functional.cross_entropy(logits, y)
            self.accuracy((logits.argmax(1) == y).float())
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.log_dict({"accuracy": self.accuracy, "lr": self.lr_schedulers().get_last_lr()[0]})
            self.logger.experiment.calls.append(self.trainer.current_epoch)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    for name, value in changes.items():
        setattr(Classifier, name, value)
    torch.manual_seed(0)
    return Classifier()


def logger_of(namespace):
    loggers = importlib.import_module(f"{namespace}.loggers.logger")

    class Experiment:
        def __init__(self):
            self.calls = []

    class Memory(loggers.Logger):
        name, version = "memory", 0

        def __init__(self):
            super().__init__()
            self.experiment = Experiment()
            self.metrics = []

        def log_metrics(self, metrics, step=None):
            self.metrics.append((step, metrics))

        def log_hyperparams(self, *_, **__):
            pass

    return Memory()


def shadowing(namespace="pytorch_lightning", after_shadow=lambda trainer, module: None):
    """A callback that runs a shadow of every batch, and compares."""
    pl = importlib.import_module(namespace)

    class Shadowing(pl.Callback):
        def __init__(self):
            self.watched = None
            self.runs = 0
            self.found = []

        def on_train_start(self, trainer, pl_module):
            self.watched = Compared(pl_module)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            scaler = trainer.scaler
            self.watched.scale = 1.0 if scaler is None else torch.tensor(scaler.get_scale())
            step = shadow_step(trainer, batch, batch_idx)
            self.watched.run_shadow(step.loss_of, step.stand_ins)
            self.runs += 1
            after_shadow(trainer, pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.found.append(self.watched.shadows())

    return Shadowing()


def fit(
    model, tmp, callbacks=(), precision="32-true", namespace="pytorch_lightning", n=16, **options
):
    pl = importlib.import_module(namespace)
    if precision == "16-mixed":
        plugins = importlib.import_module(f"{namespace}.plugins")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        options["plugins"] = plugins.MixedPrecision("16-mixed", "cpu", scaler)
    else:
        options["precision"] = precision
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    dataset = Texts(n)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger_of(namespace),
        default_root_dir=str(tmp),
        max_epochs=2,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader(dataset, batch_size=4, shuffle=True))
    return trainer, dataset


def outcome(model, trainer, dataset):
    """All a run leaves behind."""
    return {
        "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "rng": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "logged": [
            logged
            for logged in trainer.logger.metrics
            if not any(name.startswith("numwatch/") for name in logged[1])
        ],
        "experiment": trainer.logger.experiment.calls,
        "callback": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "given": dataset.given,
        "steps": (model.steps, int(model.seen), trainer.global_step),
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
    }


def manual(self, batch, batch_idx):
    optimizer = self.optimizers()
    optimizer.zero_grad()
    loss = self.head(self.body(batch[0])).sum()
    self.manual_backward(loss)
    optimizer.step()
