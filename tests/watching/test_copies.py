"""Whoever copies what watches gets something that watches nothing; the watching goes on."""

import copy
import pickle

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn

import numwatch
from numwatch.callbacks import NumericsMonitor


class Copying(Callback):
    """Copies a callback in the middle of a fit, and sends it to another process."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.copies = []

    def on_train_batch_end(self, *_):
        self.copies += [copy.deepcopy(self.monitor), pickle.loads(pickle.dumps(self.monitor))]


def test_a_monitor_can_be_copied_while_it_watches(tmp_path):
    monitor = NumericsMonitor(every_n_steps=1, summary=False, strict=True)
    copying = Copying(monitor)
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[monitor, copying],
    )
    trainer.fit(BoringModel())
    assert [each.directory for each in copying.copies] == [monitor.directory] * 6
    assert numwatch.open_run(tmp_path).steps().num_rows == 3


def test_a_watch_can_be_copied_while_it_watches(tmp_path, count_hooks):
    model = nn.Sequential(nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    with numwatch.watch(
        model, optimizer, dir=tmp_path, every_n_steps=1, summary=False, strict=True
    ) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            # It copied compiled loops, which numba frees where they were never made.
            assert copy.deepcopy(watch).directory == watch.directory
            watch.step(loss=loss)
    assert count_hooks(model) == 0
    assert numwatch.open_run(tmp_path).steps().num_rows == 3
