"""Runs in loops of the user's own: plain PyTorch and Lightning Fabric."""

import importlib
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from trainer_data import loader, loss_of
from trainer_lightning import CADENCE
from trainer_witness import Trained, Witness

import numwatch

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "fp8": torch.bfloat16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


class Model(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return loss_of(self.net, batch)


def model_of(net, precision, kind=Model):
    """Returns a model around a net, its Linears float8 where that is the precision."""
    model = kind(net.make())
    if precision == "fp8":
        importlib.import_module("torchao.float8").convert_to_float8_training(model)
    return model


class _Nobody:
    def step(self, loss=None):
        pass

    def add_loss(self, loss):
        pass


@contextmanager
def watching(setting, model, optimizer, scaler=None):
    if not setting.watched:
        yield _Nobody()
        return
    options = {**CADENCE, "dir": setting.record()}
    with numwatch.watch(model, optimizer, scaler=scaler, **options) as watch:
        yield watch


def loop(net):
    """Returns a plain loop over a net."""

    def run(setting):
        model, witness = model_of(net, setting.precision), Witness()
        witness.follow(model)
        dtype = TRUE.get(setting.precision, torch.float32)
        model.to(dtype)
        autocast = AUTOCAST.get(setting.precision)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
        scaler = torch.amp.GradScaler("cpu", enabled=setting.precision == "16-mixed")
        with watching(setting, model, optimizer, scaler) as watch:
            for batch in loader(net.data()):
                witness.begin()
                x, y = batch
                x = x.to(dtype) if x.is_floating_point() else x
                with torch.autocast("cpu", autocast) if autocast else nullcontext():
                    loss = model((x, y))
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                witness.end(loss)
                watch.step(loss=loss)
                optimizer.zero_grad()
                del loss
        return Trained(model, [optimizer], witness, _records(setting))

    return run


def fabric(net, namespace="lightning.fabric", *, accumulate=1, clip=None):
    """Returns a Fabric loop over a net."""

    def run(setting):
        Fabric = importlib.import_module(namespace).Fabric  # noqa: N806
        model, witness = model_of(net, setting.precision), Witness()
        witness.follow(model)
        fabric = Fabric(accelerator="cpu", **_fabric_options(setting.precision, namespace))
        fabric.launch()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
        wrapped, stepped = fabric.setup(model, optimizer)
        data = fabric.setup_dataloaders(loader(net.data()))
        with watching(setting, wrapped, stepped) as watch:
            for number, batch in enumerate(data, 1):
                witness.begin()
                loss = wrapped(batch)
                witness.end(loss)
                loss = loss / accumulate
                fabric.backward(loss)
                if number % accumulate:
                    watch.add_loss(loss)
                else:
                    if clip:
                        fabric.clip_gradients(wrapped, stepped, max_norm=clip)
                    stepped.step()
                    watch.step(loss=loss)
                    stepped.zero_grad()
                del loss
        return Trained(model, [optimizer], witness, _records(setting))

    return run


def _fabric_options(precision, namespace):
    if precision == "16-mixed":
        plugins = importlib.import_module(f"{namespace}.plugins")
        return {"plugins": plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))}
    return {"precision": "bf16-mixed" if precision == "fp8" else precision}


def accelerated(net):
    """Returns a loop of the user's own over what accelerate has prepared."""

    def run(setting):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = {"bf16-mixed": "bf16", "32-true": "no"}[setting.precision]
        accelerator = Accelerator(cpu=True, mixed_precision=mixed)
        model, witness = Model(net.make()), Witness()
        witness.follow(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
        prepared, stepped, data = accelerator.prepare(model, optimizer, loader(net.data()))
        with watching(setting, prepared, stepped) as watch:
            for batch in data:
                witness.begin()
                loss = prepared(batch)
                accelerator.backward(loss)
                stepped.step()
                witness.end(loss)
                watch.step(loss=loss)
                stepped.zero_grad()
                del loss
        return Trained(model, [optimizer], witness, _records(setting))

    return run


def _records(setting):
    return (setting.record(),) if setting.watched else ()
