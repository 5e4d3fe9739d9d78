"""Runs whose weights or optimizer state live in BF16."""

from functools import partial

import torch

from numwatch.demo.gpt import GPT, GPTConfig

from .case import Case, Setup
from .data import images, shuffled, text, vectors
from .models import Model, Recurrent, adamw, convnet, cross_entropy, mlp, sgd

_DECAYS = (0.9, 0.95)
"""Of Adam: BF16 keeps both, while it rounds 0.999 to 1."""


def _fine_tuning() -> Setup:
    """A fine-tuning learning rate of 1e-5 on BF16 weights."""
    model = GPT(GPTConfig(), partial(torch.optim.AdamW, lr=1e-5, betas=_DECAYS))
    return Setup(model, text())


def _tiny_steps() -> Setup:
    """SGD whose steps are far below the resolution of BF16 weights."""
    return Setup(Model(convnet(), cross_entropy, sgd(1e-5)), shuffled(*images()))


def _half_lost() -> Setup:
    """A learning rate of 3e-4, of whose updates BF16 weights swallow most."""
    return Setup(Model(Recurrent(), cross_entropy, adamw(3e-4, betas=_DECAYS)), text())


def _stuck_moment() -> Setup:
    """Adam's β2 of 0.999, which BF16 rounds to 1: the second moment never decays."""
    return Setup(Model(mlp(64, 64), cross_entropy, adamw(2e-2)), shuffled(*vectors()))


FAILING_BF16 = (
    Case(
        "bf16-true-fine-tuning",
        "lr=1e-5 on BF16 weights",
        ("learning-rate-below-resolution", "lost-updates"),
        "bf16-true",
        100,
        _fine_tuning,
    ),
    Case(
        "bf16-true-sgd",
        "lr=1e-5 on BF16 weights",
        ("learning-rate-below-resolution", "lost-updates"),
        "bf16-true",
        80,
        _tiny_steps,
    ),
    Case(
        "bf16-true-adam", "lr=3e-4 on BF16 weights", ("lost-updates",), "bf16-true", 120, _half_lost
    ),
    Case(
        "bf16-true-decay",
        "β2=.999 in BF16",
        ("state-never-decays",),
        "bf16-true",
        100,
        _stuck_moment,
    ),
)
