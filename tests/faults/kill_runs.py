"""Kills Trainer runs at random moments and reads what they left: `python kill_runs.py --kills 200`.

A record must be readable each time, and hold every step up to the last flush that was over.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.errors import NumwatchError
from numwatch.record import Recorder
from numwatch.report import summarize

BATCHES_AN_EPOCH = 4
EARLY = 0.2
"""Share of the kills that may come before anything is flushed."""


class Model(pl.LightningModule):
    """A net so small that most of the time is spent in numwatch and Lightning."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Acknowledging(pl.Callback):
    """Writes how many steps are flushed, once an epoch's flush is over."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_epoch_start(self, trainer, _):
        os.write(self.pipe, trainer.global_step.to_bytes(8, "little"))

    def on_exception(self, trainer, *_):
        os.write(self.pipe, trainer.global_step.to_bytes(8, "little"))


def train(directory, pipe):
    """Trains until it is killed."""
    warnings.simplefilter("ignore")
    monitor = NumericsMonitor(every_n_steps=1, summary=False, strict=True, dir=str(directory))
    pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        limit_train_batches=BATCHES_AN_EPOCH,
        default_root_dir=directory,
        callbacks=[monitor, Acknowledging(pipe)],
    ).fit(Model(), torch.utils.data.DataLoader(torch.randn(64, 8), batch_size=4))


def killed_after(seconds, directory, *, from_start):
    """Starts a run, kills it, and returns how many steps it had told to be flushed.

    The seconds count from its start, or from its first flush.

    Raises:
        RuntimeError: The run ended before its first flush.
    """
    ours, its = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        try:
            train(directory, its)
        finally:
            os._exit(1)
    os.close(its)
    told = b""
    while not from_start and len(told) < 16:  # of which the first says 0
        piece = os.read(ours, 8)
        if not piece:
            os.close(ours)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            raise RuntimeError(f"the run ended by itself, with status {status}")
        told += piece
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    while piece := os.read(ours, 1 << 16):
        told += piece
    os.waitpid(child, 0)
    os.close(ours)
    return int.from_bytes(told[-8:], "little")


def check(directory, flushed):
    """Reads the record of a run that was killed; returns how many steps it holds."""
    try:
        run = numwatch.open_run(directory)
    except NumwatchError:
        assert not flushed, "a record that had steps is gone"
        return 0
    steps = run.steps()["step"].to_pylist()
    assert steps == list(range(len(steps))), steps
    assert len(steps) >= flushed, (len(steps), flushed)
    assert set(run.tensors()["step"].to_pylist()) <= set(steps)
    run.events()
    assert all("events.jsonl" in problem for problem in run.problems), run.problems
    assert len(run.problems) <= 1, run.problems
    summarize(run).as_dict()
    with Recorder.open(run.path, precision="32-true", device="cpu", arguments={}) as recorder:
        recorder.event("memory", len(steps), bytes=1)
    again = numwatch.open_run(directory)
    assert again.steps()["step"].to_pylist() == steps
    assert again.events()[-1]["kind"] == "memory"
    return len(steps)


def main():
    """Kills and checks so many runs; says how far they had come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=1.0, help="seconds from the first flush")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dice = random.Random(given.seed)
    lengths = []
    for _ in range(given.kills):
        with tempfile.TemporaryDirectory() as folder:
            early = dice.random() < EARLY
            seconds = dice.uniform(0.0, 2.0 if early else given.longest)
            flushed = killed_after(seconds, Path(folder), from_start=early)
            lengths.append(check(Path(folder), flushed))
    lengths.sort()
    print(  # noqa: T201  # a command's
        f"{given.kills} runs killed: every record readable, {lengths.count(0)} without a step, the "
        f"others with {lengths[lengths.count(0)] if lengths[-1] else 0} to {lengths[-1]}"
    )


if __name__ == "__main__":
    sys.exit(main())
