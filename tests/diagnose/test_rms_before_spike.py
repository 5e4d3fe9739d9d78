"""Wortsman et al. 2023 on a real run: Adam's RMS_t alarms before the loss spikes."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.quiet import quiet
from numwatch.diagnose import diagnose
from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.rules.loss import loss_spikes
from numwatch.diagnose.rules.states import rms_spike
from numwatch.diagnose.thresholds import RMS_ALARM, RMS_LEAD

SHIFT, SORTED, BATCH, CLASSES = 200, 6, 64, 10


def batches(steps):
    """Shuffled noisy labels; from step SHIFT on a shard sorted by label, six batches of each."""
    teacher = torch.randn(32, CLASSES)

    def labelled(count):
        x = torch.randn(count, 32)
        labels = (x @ teacher).argmax(dim=1)
        noisy = torch.randint(CLASSES, (count,))
        return x, torch.where(torch.rand(count) < 0.3, labels, noisy)

    for step in range(steps):
        if step < SHIFT:
            yield labelled(BATCH)
        else:
            x, labels = labelled(40 * BATCH)
            chosen = (labels == (step - SHIFT) // SORTED % CLASSES).nonzero()[:BATCH, 0]
            yield x[chosen], labels[chosen]


class Classifier(pl.LightningModule):
    def __init__(self, beta2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        self.beta2 = beta2

    def training_step(self, batch, _):
        x, labels = batch
        return F.cross_entropy(self.net(x), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, betas=(0.9, self.beta2))


def train(directory, seed, beta2=0.999, steps=SHIFT + 30):
    with quiet():
        pl.seed_everything(seed, verbose=False)
        module = Classifier(beta2)
        data = DataLoader(list(batches(steps)), batch_size=None)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[
                NumericsMonitor(
                    every_n_steps=1,
                    amax_every_n_steps=1,
                    dir=str(directory),
                    summary=False,
                    strict=True,
                )
            ],
        )
        trainer.fit(module, data)
    return numwatch.open_run(directory)


@pytest.mark.parametrize("seed", range(3))
def test_the_alarm_comes_before_the_spike_and_leads(tmp_path, seed):
    run = train(tmp_path, seed)
    seen = Evidence(run)
    (alarm,) = rms_spike(seen)
    spike = next(spike for spike in loss_spikes(seen) if spike.confirmed)
    assert alarm.severity == "warning"
    assert SHIFT <= alarm.step < spike.step <= alarm.step + RMS_LEAD
    assert alarm.evidence[0].value >= RMS_ALARM
    causes = [finding for finding in diagnose(run) if finding.severity != "info"]
    assert [cause.rule for cause in causes] == ["rms-spike"]
    assert "loss-spike" in [finding.rule for finding in causes[0].consequences]


def test_before_the_shift_nothing_is_wrong(tmp_path):
    found = diagnose(train(tmp_path, 0, steps=SHIFT))
    assert [finding for finding in found if finding.severity != "info"] == []
