"""The demo's run: a real `Trainer`, watched by `NumericsMonitor`."""

import math
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from torch.utils.data import DataLoader

from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.precision import precision_of
from numwatch.demo.quiet import quiet
from numwatch.demo.text import Windows, corpus, split
from numwatch.errors import NumwatchError, near

DEVICES = ("auto", "cpu", "cuda")
STEPS = 900
EPOCHS = 3
BATCH = 8
VALIDATION_BATCHES = 10
SEED = 0


def run_demo(
    precision: str = "16-mixed",
    steps: int | None = None,
    device: str = "auto",
    out: Path | str = "demo-run",
) -> None:
    """Trains the GPT, prints a summary at each epoch's end, and says what to type next.

    Takes about a minute and a half on two CPU cores. The record and the TensorBoard events go
    to `out`; what an earlier demo left there is superseded.

    Args:
        precision: One of `PRECISIONS`.
        steps: Optimizer steps, in three epochs; 900 by default.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is a device.
        out: Directory of the run, made where missing.

    Raises:
        NumwatchError: An argument is none of these.
    """
    from numwatch.callbacks import NumericsMonitor

    chosen = precision_of(precision)
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise NumwatchError(f"steps is a positive number; got {steps}")
    device = _device(device)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise NumwatchError(f"the run's directory must be a directory; {out} is a file")

    console = Console()
    with quiet():
        pl.seed_everything(SEED, verbose=False)
        config = GPTConfig()
        model = GPT(config, chosen.optimizer)
        training, validation = (Windows(part, config.context) for part in split(corpus()))
        trainer = pl.Trainer(
            accelerator=device,
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            limit_train_batches=math.ceil(steps / EPOCHS),
            limit_val_batches=VALIDATION_BATCHES,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            # purge_step: TensorBoard forgets what an earlier demo wrote here
            logger=TensorBoardLogger(out, name="", version="", purge_step=0),
            callbacks=[TQDMProgressBar(10, leave=True), *chosen.callbacks(), NumericsMonitor()],
            enable_checkpointing=False,
            enable_model_summary=False,
            **chosen.trainer(device),
        )
        parameters = sum(p.numel() for p in model.parameters())
        console.print(
            f"A GPT of {parameters:,} parameters on {len(training.codes):,} characters of "
            f"Python's help, {steps} steps in {precision} on {device}.",
            soft_wrap=True,
        )
        trainer.fit(
            model,
            DataLoader(training, BATCH, shuffle=True, drop_last=True),
            DataLoader(validation, BATCH, drop_last=True),
        )
    metrics = {name: f"{float(value):.3f}" for name, value in trainer.callback_metrics.items()}
    console.print(f"loss {metrics['loss']}, validation loss {metrics.get('val_loss', 'not run')}")
    console.print("\nNow type")
    console.print(f"  numwatch report {out}", style="bold", soft_wrap=True)
    console.print(f"  tensorboard --logdir {out}", style="bold", soft_wrap=True)


def _device(name: str) -> str:
    if name not in DEVICES:
        raise NumwatchError(
            f"device is one of {', '.join(DEVICES)}; got {name!r}{near(name, DEVICES)}"
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise NumwatchError("device cuda was asked for, and torch finds none; use cpu or auto")
    return name
