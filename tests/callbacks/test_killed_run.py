"""A real Trainer run killed at random moments: the report reads all that was flushed."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import numwatch

BATCHES_AN_EPOCH = 4

TRAIN = f"""
import sys, torch, pytorch_lightning as pl
from numwatch.callbacks import NumericsMonitor

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    def training_step(self, batch, _):
        return self.net(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

pl.Trainer(
    accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    max_epochs=-1, max_time="00:00:02:00", limit_train_batches={BATCHES_AN_EPOCH},
    default_root_dir=sys.argv[1],
    callbacks=[NumericsMonitor(every_n_steps=1, summary=False, strict=True)],
).fit(Model(), torch.utils.data.DataLoader(torch.randn(64, 8), batch_size=4))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_report_reads_all_that_was_flushed(seed, tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAIN, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        record = tmp_path / "numwatch"
        deadline = time.monotonic() + 120
        while not list(record.glob("tensors/*.parquet")):
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0.0, 2.0))
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()

    run = numwatch.open_run(tmp_path)
    assert run.problems == []
    steps = run.steps()["step"].to_pylist()
    # Every epoch's end flushes: what is missing is less than an epoch.
    assert steps == list(range(len(steps)))
    assert len(steps) >= BATCHES_AN_EPOCH
    assert set(run.tensors(slot="net.0:weight")["step"].to_pylist()) <= set(steps)
    done = subprocess.run(
        [Path(sys.executable).with_name("numwatch"), "report", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"steps 0.{steps[-1]} ", done.stdout)
