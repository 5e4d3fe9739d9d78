"""How far the flushed share that FP16 rows let one guess is from the one a shadow step measures."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.text import Windows, corpus, split
from numwatch.report import summarize

STEPS = 60


def shadowed_run(scale, tmp_path):
    """Trains the demo's GPT in real FP16 at a scale that stays; returns its FP16 gradients."""
    torch.manual_seed(0)
    config = GPTConfig(dropout=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**9)
    monitor = NumericsMonitor(
        20, 0, dir=str(tmp_path), summary=False, strict=True, shadow_every_n_steps=20
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    data = Windows(split(corpus())[0], config.context)
    model = GPT(config, partial(torch.optim.AdamW, lr=6e-3))
    trainer.fit(model, DataLoader(data, batch_size=8, shuffle=True, drop_last=True))
    run = numwatch.open_run(tmp_path)
    return [line for line in summarize(run).shadows if run.slots[line.slot].rounded]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no .val_dataloader.")
@pytest.mark.parametrize("scale", [1.0, 8.0, 1024.0, 32768.0])
def test_the_estimate_is_within_six_points_of_the_truth_slot_by_slot(scale, tmp_path):
    lines = shadowed_run(scale, tmp_path)
    assert len(lines) == 27
    off = {line.slot: line.estimate.value - line.flushed_share for line in lines}
    assert max(map(abs, off.values())) < 0.06
    nonzero = [line.sampled - line.zeros for line in lines]
    measured = sum(line.flushed for line in lines) / sum(nonzero)
    estimated = sum(
        line.estimate.value * count for line, count in zip(lines, nonzero, strict=True)
    ) / sum(nonzero)
    assert estimated == pytest.approx(measured, abs=0.01)
