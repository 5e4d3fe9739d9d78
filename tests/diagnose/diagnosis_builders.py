"""Runs whose every number is chosen, and real ones that fail for a known reason."""

from dataclasses import dataclass, field

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numwatch import open_run, tensor_stats
from numwatch.callbacks import NumericsMonitor
from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.finding import Finding
from numwatch.record import Recorder
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats import TensorStats, pack_row
from numwatch.tensor_rows import Rows


def slot(module, role, order=0, dtype="float16", fmt="fp16", module_class="Linear"):
    return SlotInfo(f"{module}:{role}", module, role, module_class, (8, 8), dtype, fmt, order)


def layers(n, dtype="float16", fmt="fp16"):
    """Weight, input, output and both gradients of n layers, numbered as a step sees them."""
    names = [f"net.{i}" for i in range(n)]
    forward = [(name, "weight") for name in names]
    forward += [(name, role) for name in names for role in ("input", "output")]
    backward = [(name, role) for name in reversed(names) for role in ("grad_output", "grad_weight")]
    return [
        slot(name, role, order, dtype, fmt)
        for order, (name, role) in enumerate([*forward, *backward])
    ]


@dataclass
class Step:
    """One step: scalars, and by slot a tensor or its stats, with the casts of some."""

    scalars: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)
    casts: dict = field(default_factory=dict)
    full: bool = True


def make_run(directory, infos, steps, *, events=(), precision="16-mixed"):
    """Writes a record of `Step`s, the i-th at step i, and opens it."""
    by_name = {info.slot: info for info in infos}
    with Recorder.open(directory, precision=precision, device="cpu", arguments={}) as recorder:
        recorder.describe(list(infos))
        for number, step in enumerate(steps):
            recorder.write(snapshot(number, step, by_name))
        for kind, number, details in events:
            recorder.event(kind, number, **details)
    return open_run(directory)


def snapshot(number, step, by_name):
    """The snapshot of a step, of slots by name."""
    scalars = StepScalars(**{"loss": 1.0, **step.scalars})
    return Snapshot(number, scalars, _rows(step, by_name, scalars))


def _rows(step, by_name, scalars):
    if not step.tensors:
        return None
    stats = {
        name: value if isinstance(value, TensorStats) else tensor_stats(value)
        for name, value in step.tensors.items()
    }
    counts, reals = zip(*[pack_row(each) for each in stats.values()], strict=True)
    scale = scalars.loss_scale_before
    scales = [scale if name in by_name and by_name[name].scaled else 1.0 for name in stats]
    casts = tuple(step.casts.get(name) for name in stats)
    counts, reals = np.stack(counts), np.stack(reals)
    return Rows(tuple(stats), counts, reals, np.array(scales), casts, step.full)


def spread(amax, n=64, dtype=torch.float32):
    """n numbers of both signs, evenly spread up to `amax`."""
    return torch.linspace(-1.0, 1.0, n, dtype=torch.float64).mul(amax).to(dtype)


def found(run, *rules):
    """What rules find, by name; a rule that fails fails the test."""
    evidence = Evidence(run)
    return {each.rule: each for rule in rules for each in rule(evidence)}


def flat(findings):
    """All findings of a chain."""
    for each in findings:
        assert isinstance(each, Finding)
        yield each
        yield from flat(each.consequences)


def hurting(findings):
    """Rules of the causes above an info, in order."""
    return [each.rule for each in findings if each.severity != "info"]


class Net(pl.LightningModule):
    """A net with a loss, trained by SGD or by what is given."""

    def __init__(self, net, loss, optimizer=None):
        super().__init__()
        self.net, self.loss = net, loss
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.05))

    def training_step(self, batch, _):
        x, y = batch
        return self.loss(self.net(x), y)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def cross_entropy(outputs, labels):
    return nn.functional.cross_entropy(outputs.float(), labels)


def classes(n=640, features=16):
    """Inputs and labels that a linear map of them tells."""
    x = torch.randn(n, features)
    return x, (x @ torch.randn(features, 10)).argmax(1)


def train(directory, module, tensors, *, steps=40, scaler=None, precision=None, **monitor):
    """A real run, watched at every second step; under FP16 and a scaler where one is given."""
    options = {"precision": precision or "32-true"}
    if scaler is not None:
        scaler = torch.amp.GradScaler("cpu", **scaler)
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    watched = {"every_n_steps": 4, "amax_every_n_steps": 2, "summary": False, "strict": True}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[NumericsMonitor(dir=str(directory), **{**watched, **monitor})],
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(*tensors), batch_size=32))
    return open_run(directory)
