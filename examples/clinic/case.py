"""`Case`: a run whose state of health is known, and how it is run."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision

from numwatch.callbacks import NumericsMonitor
from numwatch.demo.quiet import quiet
from numwatch.record import RECORD_FOLDER

EVERY_N_STEPS = 10
AMAX_EVERY_N_STEPS = 2
"""The runs are short, so rows come more often than by default."""


@dataclass(frozen=True)
class Setup:
    """What is trained, and with which arguments.

    Attributes:
        module: The LightningModule, with its optimizer.
        batches: Its training batches.
        trainer: Arguments of the `Trainer`, besides the precision.
        monitor: Arguments of `NumericsMonitor`.
        scaler: Arguments of the `GradScaler`, under `16-mixed`.
    """

    module: pl.LightningModule
    batches: Iterable[Any]
    trainer: Mapping[str, Any] = field(default_factory=dict)
    monitor: Mapping[str, Any] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A run that fails for a known reason, or is healthy.

    Attributes:
        name: A word with hyphens.
        ill: What is wrong with it, in a few words; empty for a healthy run.
        expected: Rules of which one must be the first cause; empty for a healthy run.
        precision: The Trainer's word for it.
        steps: Optimizer steps.
        make: Makes the set-up, from torch's generator alone.
    """

    name: str
    ill: str
    expected: tuple[str, ...]
    precision: str
    steps: int
    make: Callable[[], Setup]

    def __post_init__(self) -> None:
        if bool(self.ill) != bool(self.expected):
            raise ValueError(f"{self.name}: a failing run has an ill and an expected cause")

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with the run."""
        return not self.expected


def run(case: Case, seed: int, directory: Path) -> Path:
    """Trains a case to its end, watched by `NumericsMonitor`.

    Args:
        case: The case.
        seed: Of weights, data and their order.
        directory: Where the record goes.

    Returns:
        The record's directory.
    """
    with quiet(), warnings.catch_warnings():
        # What numwatch says of a failing run while it runs is not what is asked here.
        warnings.filterwarnings("ignore", "numwatch: ")
        warnings.filterwarnings("ignore", "You defined a `validation_step`")
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
        pl.seed_everything(seed, verbose=False)
        setup = case.make()
        monitor = {
            "every_n_steps": EVERY_N_STEPS,
            "amax_every_n_steps": AMAX_EVERY_N_STEPS,
            "dir": str(directory),
            "summary": False,
            "strict": True,
            **setup.monitor,
        }
        options = {**_precision(case.precision, setup.scaler), **setup.trainer}
        callbacks = [*options.pop("callbacks", ()), NumericsMonitor(**monitor)]
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=case.steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=callbacks,
            **options,
        )
        trainer.fit(setup.module, setup.batches)
    return directory / RECORD_FOLDER


def _precision(name: str, scaler: Mapping[str, Any]) -> dict[str, Any]:
    if name != "16-mixed":
        return {"precision": name}
    # Asked for by name, Lightning would run it as BF16 on a CPU, without a scaler.
    return {"plugins": [MixedPrecision(name, "cpu", torch.amp.GradScaler("cpu", **scaler))]}
