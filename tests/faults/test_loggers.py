"""A logger that raises: the charts end, the run and its record go on."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

import numwatch
from numwatch.callbacks import NumericsMonitor


class Failing(Logger):
    """Takes Lightning's own metrics and refuses numwatch's from a step on."""

    name, version = "failing", 0

    def __init__(self, root, fails_from):
        super().__init__()
        self.root, self.fails_from = str(root), fails_from

    @property
    def root_dir(self):
        return self.root

    @property
    def log_dir(self):
        return self.root

    def log_hyperparams(self, *_args, **_kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if step is not None and step >= self.fails_from and any("numwatch" in k for k in metrics):
            raise ConnectionError("the tracking server is gone")


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fitted(directory, *callbacks):
    torch.manual_seed(0)
    model = Model()
    data = torch.utils.data.DataLoader(torch.randn(48, 8), batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.Trainer(
            accelerator="cpu",
            logger=Failing(directory, 4),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            log_every_n_steps=1,
            callbacks=list(callbacks),
        ).fit(model, data)
    told = [str(each.message) for each in caught if "numwatch" in str(each.message)]
    return [p.detach().clone() for p in model.parameters()], told


def test_a_logger_that_raises_ends_its_charts_alone(tmp_path):
    bare, _ = fitted(tmp_path / "bare")
    watched, told = fitted(
        tmp_path, NumericsMonitor(every_n_steps=1, summary=False, dir=str(tmp_path))
    )
    assert all(map(torch.equal, watched, bare))
    (warning,) = told
    assert "the tracking server is gone" in warning
    assert "the record goes on" in warning
    run = numwatch.open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == list(range(12))
    assert run.problems == []


def test_strict_raises_it(tmp_path):
    monitor = NumericsMonitor(1, summary=False, strict=True, dir=str(tmp_path))
    with pytest.raises(ConnectionError, match="tracking server"):
        fitted(tmp_path, monitor)
