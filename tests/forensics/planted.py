"""Failures planted inside a transformer's attention, and a Trainer's run of it in real FP16."""

import math

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.gpt import GPT, Attention, GPTConfig
from numwatch.demo.text import Windows, encode

CONFIG = GPTConfig(context=16, layers=2, heads=2, width=32)
TEXT = encode("the quick brown fox jumps over the lazy dog, and so on and so forth. " * 40)
LOUD = 60.0
"""What makes a layer that was harmless overflow FP16, from the step `SINCE` on."""
SINCE = 3


class Planted(Attention):
    """Attention whose weights come from `weights(scores)`; `gain` grows at step `SINCE`."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        mask = torch.full((config.context, config.context), -math.inf).triu(1)
        self.register_buffer("mask", mask)

    def forward(self, x):
        loud = self.calls >= SINCE
        self.calls += 1
        gain = torch.where(loud, LOUD, 1.0).to(x.dtype)
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.attend(q, k, v, gain)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))


class NaiveSoftmax(Planted):
    def attend(self, q, k, v, gain):
        scores = (q @ k.transpose(-1, -2)) * gain * gain.to(q.dtype) + self.mask.to(q.dtype)
        with torch.autocast("cpu", enabled=False):
            raised = torch.exp(scores.half())
            weights = raised / raised.sum(-1, keepdim=True)
        return weights @ v


class NarrowNorm(Planted):
    def attend(self, q, k, v, gain):
        with torch.autocast("cpu", enabled=False):
            q = (q + 300 * (gain == LOUD)).half()
            mean = q.mean(-1, keepdim=True)
            variance = q.square().mean(-1, keepdim=True) - mean.square()
            q = (q - mean) / (variance.relu() + 1e-3).sqrt()
        return F.scaled_dot_product_attention(q, k.half(), v.half(), is_causal=True)


class ZeroNorm(Planted):
    def attend(self, q, k, v, gain):
        q = q * (gain < LOUD)
        length = q.norm(dim=-1, keepdim=True)
        q = q / length
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class MaskedRow(Planted):
    def attend(self, q, k, v, gain):
        scores = q @ k.transpose(-1, -2)
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        hidden[..., :1, :] |= gain == LOUD
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return weights @ v


class SafeMask(Planted):
    def attend(self, q, k, v, gain):
        scores = q @ k.transpose(-1, -2) + self.mask.to(q.dtype)
        return scores.float().softmax(-1).to(v.dtype) @ v


class Trained(GPT):
    validation_step = pl.LightningModule.validation_step  # none, so that Lightning misses no data


def model(attention, seed=0):
    torch.manual_seed(seed)
    made = Trained(CONFIG, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    if attention is not None:
        made.blocks[1].attn = attention(CONFIG)
    return made


def fp16(scale=1024.0):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def fit(made, tmp, data=None, steps=6, monitor=True, callbacks=(), **options):
    """Trains and returns the trainer and, where it was monitored, the record."""
    torch.manual_seed(1)
    watching = NumericsMonitor(every_n_steps=50, summary=False, strict=True, dir=str(tmp))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[*([watching] if monitor else []), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(made, data or DataLoader(Windows(TEXT, CONFIG.context), 4, drop_last=True))
    return trainer, numwatch.open_run(tmp) if monitor else None


def origins(run):
    return [event for event in run.events() if event["kind"] == "origin"]


def batches(spoil=None, at=3, n=16):
    """Batches as dictionaries; `spoil` is called on that of step `at`."""
    generator = torch.Generator().manual_seed(0)
    made = [
        {
            "x": torch.randn(8, 8, generator=generator),
            "y": torch.randint(2, (8,), generator=generator),
        }
        for _ in range(n)
    ]
    if spoil is not None:
        spoil(made[at])
    return DataLoader(made, batch_size=None)


def bad_datum(batch):
    batch["x"][2, 5] = math.nan


def too_large(batch):
    batch["x"] = batch["x"].sign() * 3e38


class Linear(pl.LightningModule):
    """A small classifier with dropout and BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2)
        )

    def training_step(self, batch, _):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def loss(self, batch):
        return F.cross_entropy(self.body(batch["x"]).float(), batch["y"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Trap(Linear):
    """Its loss is finite, its gradients never are."""

    def loss(self, batch):
        return super().loss(batch) + (self.body[0].weight * 0).square().sum().sqrt()


class Raising(Linear):
    """Raises at the fourth batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 3:
            raise ValueError(f"loss {loss.item()!r}")
        return loss
