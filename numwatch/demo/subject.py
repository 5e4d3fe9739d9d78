"""The demo as what a plan is proved on: model, batches and Trainer arguments."""

from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.precision import LEARNING_RATE
from numwatch.demo.text import Windows, corpus, split
from numwatch.demo.train import BATCH

VALIDATION_BATCHES = 50


class DecayingGPT(GPT):
    """The GPT with a learning rate that falls to 0 over the run.

    At a constant rate the loss at the end is that of the last few batches as much as of the format.
    """

    def configure_optimizers(self) -> Any:
        """Returns the optimizer and its schedule."""
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=int(steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def demo_subject() -> tuple[Any, Any, Any, dict[str, Any]]:
    """Returns the GPT in BF16 mixed precision, as `numwatch prove --demo` trains it.

    Its size and batches are those of `numwatch demo`; its learning rate decays and more is
    validated, since a difference of 1 % is to be seen.
    """
    config = GPTConfig()
    training, validation = (Windows(part, config.context) for part in split(corpus()))
    return (
        DecayingGPT(config, partial(torch.optim.AdamW, lr=LEARNING_RATE)),
        DataLoader(training, BATCH, shuffle=True, drop_last=True),
        DataLoader(validation, BATCH, drop_last=True),
        {
            "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
            "devices": 1,
            "precision": "bf16-mixed",
            "limit_val_batches": VALIDATION_BATCHES,
        },
    )
