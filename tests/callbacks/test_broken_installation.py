"""What a fit needs is imported when it starts: where that fails, the fit goes on unwatched."""

import sys
import warnings

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

from numwatch.callbacks import NumericsMonitor

NEEDED = ("numwatch.session", "numwatch.record", "rich.console", "numwatch.callbacks.views")


def trained(tmp_path, *callbacks, **options):
    """The weights after a short fit, and what numwatch warned of."""
    torch.manual_seed(0)
    model = BoringModel()
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, **options)
    told = [str(each.message) for each in caught if "numwatch" in str(each.message)]
    return model.layer.weight, told, trainer


@pytest.mark.parametrize("missing", NEEDED)
def test_a_fit_goes_on_without_what_cannot_be_imported(missing, tmp_path, monkeypatch):
    bare, _, _ = trained(tmp_path / "bare")
    monkeypatch.setitem(sys.modules, missing, None)
    monitor = NumericsMonitor()
    watched, told, trainer = trained(tmp_path, monitor)
    assert trainer.global_step == 3
    assert torch.equal(watched, bare)
    (warning,) = told
    assert "the training goes on" in warning
    assert missing in warning


def test_a_strict_monitor_raises_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numwatch.session", None)
    with pytest.raises(ImportError, match=r"numwatch\.session"):
        trained(tmp_path, NumericsMonitor(strict=True))


def test_a_resumed_fit_goes_on_too(tmp_path, monkeypatch):
    _, _, before = trained(tmp_path, NumericsMonitor(summary=False))
    path = tmp_path / "last.ckpt"
    before.save_checkpoint(path)
    monkeypatch.setitem(sys.modules, "numwatch.record.find", None)
    monkeypatch.setitem(sys.modules, "numwatch.session", None)
    _, told, _ = trained(tmp_path, NumericsMonitor(), ckpt_path=path)
    assert told
    assert all("the training goes on" in each for each in told)
