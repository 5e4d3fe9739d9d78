"""Runs under Lightning's Trainer in its many ways."""

import importlib
import sys
from unittest import mock

import torch
import yaml
from torch import nn
from trainer_data import BATCHES, loader, loss_of
from trainer_witness import Trained, Witness

from numwatch.callbacks import Float8Training, NumericsMonitor

CADENCE = {"every_n_steps": 1, "block_every_n_steps": 2, "strict": True, "summary": False}


def monitor_in(directory):
    return NumericsMonitor(dir=str(directory), **CADENCE)


def module_of(net, namespace="pytorch_lightning", **changes):
    """A LightningModule around a net."""
    pl = importlib.import_module(namespace)

    class Task(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.witness = Witness()
            self.data = net.data
            self.make()

        def make(self):
            self.net = net.make()
            self.witness.follow(self.net)

        def training_step(self, batch, batch_idx):
            self.witness.begin()
            loss = loss_of(self.net, batch)
            self.witness.end(loss)
            return loss

        def train_dataloader(self):
            return loader(self.data())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.net.parameters(), lr=1e-2, eps=1e-4)

    for name, value in changes.items():
        setattr(Task, name, value)
    return Task()


def trainer_of(setting, namespace="pytorch_lightning", *, callbacks=(), monitors=1, **options):
    """A Trainer in a cell's precision, with numwatch's callbacks where it is watched."""
    pl = importlib.import_module(namespace)
    own = [monitor_in(setting.record(number)) for number in range(monitors)]
    options = {**precision_options(setting.precision, namespace), **options}
    converting = [Float8Training()] if setting.precision == "fp8" else []
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=setting.directory,
        callbacks=[*converting, *callbacks, *(own if setting.watched else [])],
        **{
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def precision_options(precision, namespace="pytorch_lightning"):
    """Trainer arguments; FP16 with a scaler on a CPU takes a plugin of its own."""
    if precision == "16-mixed":
        plugins = importlib.import_module(f"{namespace}.plugins")
        return {"plugins": [plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}
    return {"precision": "bf16-mixed" if precision == "fp8" else precision}


def trained(setting, trainer, module, monitors=1):
    records = [setting.record(number) for number in range(monitors)] if setting.watched else []
    return Trained(module, trainer.optimizers, module.witness, tuple(records))


def fit(
    net, namespace="pytorch_lightning", *, callbacks=tuple, changes=None, monitors=1, **options
):
    """Returns what fits a net in a cell.

    Args:
        net: The net.
        namespace: Of Lightning.
        callbacks: Makes the user's own callbacks.
        changes: Methods of the module instead of its own.
        monitors: How many monitors the Trainer has.
        options: Further arguments of the Trainer.
    """

    def run(setting):
        module = module_of(net, namespace, **(changes or {}))
        trainer = trainer_of(
            setting, namespace, callbacks=callbacks(), monitors=monitors, **options
        )
        trainer.fit(module)
        return trained(setting, trainer, module, monitors)

    return run


def fit_twice(net):
    def run(setting):
        module = module_of(net)
        trainer = trainer_of(setting)
        trainer.fit(module)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module)
        return trained(setting, trainer, module)

    return run


def _manual_step(self, batch, batch_idx):
    self.witness.begin()
    loss = loss_of(self.net, batch)
    optimizers = self.optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    for optimizer in optimizers:
        optimizer.zero_grad()
    self.manual_backward(loss)
    for optimizer in optimizers:
        optimizer.step()
    self.witness.end(loss)
    return loss.detach()


def _two_optimizers(self):
    first, *rest = self.net.children()
    return [
        torch.optim.AdamW(first.parameters(), lr=1e-2, eps=1e-4),
        torch.optim.SGD(nn.ModuleList(rest).parameters(), lr=1e-2),
    ]


MANUAL = {"automatic_optimization": False, "training_step": _manual_step}
MANUAL_TWO = {**MANUAL, "configure_optimizers": _two_optimizers}


def _combined_step(self, batch, batch_idx):
    self.witness.begin()
    loss = loss_of(self.net, batch["one"]) + loss_of(self.net, batch["other"])
    self.witness.end(loss)
    return loss


COMBINED = {
    "training_step": _combined_step,
    "train_dataloader": lambda self: {
        "one": loader(self.data(BATCHES)),
        "other": loader(self.data(2)),
    },
}


def _validation_step(self, batch, batch_idx, dataloader_idx=0):
    self.log("loss", loss_of(self.net, batch), on_epoch=True)


VALIDATED = {
    "validation_step": _validation_step,
    "val_dataloader": lambda self: [loader(self.data(n), shuffle=False) for n in (2, 1)],
}
ONE_VALIDATED = {**VALIDATED, "val_dataloader": lambda self: loader(self.data(2), shuffle=False)}


def _configured(net, *, meta):
    def configure_model(self):
        if hasattr(self, "net"):
            return
        if not meta:
            self.net = net.make()
        else:
            with torch.device("meta"):
                self.net = net.make()
            self.net.to_empty(device="cpu")
            for module in self.net.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        self.witness.follow(self.net)

    return {"make": lambda self: None, "configure_model": configure_model}


def configured(net, *, meta=False):
    """Fits a net that is built in `configure_model`, on the meta device first where asked."""
    return fit(net, changes=_configured(net, meta=meta))


def cli(net, namespace):
    """Returns what fits a net by LightningCLI, all of it told by a YAML file."""

    def run(setting):
        LightningCLI = importlib.import_module(f"{namespace}.cli").LightningCLI  # noqa: N806
        setting.directory.mkdir()
        config = setting.directory / "config.yaml"
        config.write_text(yaml.safe_dump({"trainer": _trainer_config(setting, namespace)}))
        with mock.patch.object(sys, "argv", ["train.py", "fit", f"--config={config}"]):
            done = LightningCLI(
                type(module_of(net, namespace)),
                save_config_callback=None,
                seed_everything_default=0,
            )
        return trained(setting, done.trainer, done.model)

    return run


def _trainer_config(setting, namespace):
    config = {
        "accelerator": "cpu",
        "default_root_dir": str(setting.directory),
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if setting.precision == "16-mixed":
        scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu"}}
        config["plugins"] = {
            "class_path": f"{namespace}.plugins.MixedPrecision",
            "init_args": {"precision": "16-mixed", "device": "cpu", "scaler": scaler},
        }
    else:
        config["precision"] = setting.precision
    if setting.watched:
        own = {**CADENCE, "dir": str(setting.record())}
        config["callbacks"] = [
            {"class_path": "numwatch.callbacks.NumericsMonitor", "init_args": own}
        ]
    return config
