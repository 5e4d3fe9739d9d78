"""Runs in which nothing is wrong: not a single warning may come of them."""

from functools import partial
from typing import Any

import torch

from numwatch.callbacks import Float8Training
from numwatch.demo.gpt import GPT, GPTConfig

from .case import Case, Setup
from .data import images, regression, shuffled, text, tokens, vectors
from .gan import Gan
from .models import Encoder, Model, Recurrent, adamw, convnet, cross_entropy, mean_square, mlp, sgd


def _gpt(**options: Any) -> Setup:
    return Setup(GPT(GPTConfig(), partial(torch.optim.AdamW, lr=6e-3)), text(), **options)


def _gpt_scale_search() -> Setup:
    """A loss scale that starts too high, is found by some skips, and grows every 40 steps."""
    return _gpt(scaler={"init_scale": 2.0**28, "growth_interval": 40})


def _gpt_float8(recipe: str) -> Setup:
    return _gpt(trainer={"callbacks": [Float8Training(recipe, exclude=["head"])]})


def _mlp(**options: Any) -> Setup:
    return Setup(Model(mlp(64, 64), cross_entropy, adamw()), shuffled(*vectors()), **options)


def _regression() -> Setup:
    """First losses in the thousands, as targets are not normalised."""
    x, y = regression()
    return Setup(Model(mlp(64, 64, last=8), mean_square, adamw(3e-3)), shuffled(x, 50 + 30 * y))


def _mlp_half() -> Setup:
    return Setup(Model(mlp(64, 64), cross_entropy, sgd(0.1, momentum=0.9)), shuffled(*vectors()))


def _accumulating() -> Setup:
    return _mlp(trainer={"accumulate_grad_batches": 4}, scaler={"growth_interval": 50})


def _cnn(**options: Any) -> Setup:
    return Setup(Model(convnet(), cross_entropy, adamw(3e-3)), shuffled(*images()), **options)


def _lstm(**options: Any) -> Setup:
    return Setup(Model(Recurrent(), cross_entropy, adamw(3e-3)), text(), **options)


def _padded() -> Setup:
    """Attention masks of -inf that never hide a whole row."""
    x, labels = tokens()
    lengths = torch.randint(1, 13, (len(x),))
    mask = (torch.arange(12) < lengths[:, None])[:, None, None].expand(-1, 1, 12, 12)
    return Setup(Model(Encoder(), cross_entropy, adamw(3e-3)), shuffled(x, mask, labels))


def _gan() -> Setup:
    points = torch.randn(4096, 2) * 0.5 + torch.tensor([1.0, -1.0])
    return Setup(Gan(), shuffled(points))


HEALTHY = (
    Case("gpt-fp16", "", (), "16-mixed", 150, _gpt_scale_search),
    Case("gpt-bf16", "", (), "bf16-mixed", 150, _gpt),
    Case("gpt-fp8-tensorwise", "", (), "bf16-mixed", 120, partial(_gpt_float8, "tensorwise")),
    Case("gpt-fp8-rowwise", "", (), "bf16-mixed", 120, partial(_gpt_float8, "rowwise")),
    Case("mlp-fp16", "", (), "16-mixed", 150, _mlp),
    Case("mlp-fp16-accumulating", "", (), "16-mixed", 120, _accumulating),
    Case("mlp-bf16", "", (), "bf16-mixed", 150, _mlp),
    Case("mlp-fp32", "", (), "32-true", 150, _regression),
    Case("mlp-fp16-true-sgd", "", (), "16-true", 150, _mlp_half),
    Case("mlp-bf16-true-sgd", "", (), "bf16-true", 150, _mlp_half),
    Case("cnn-fp16", "", (), "16-mixed", 150, _cnn),
    Case("cnn-bf16", "", (), "bf16-mixed", 150, _cnn),
    Case("lstm-fp16", "", (), "16-mixed", 120, _lstm),
    Case(
        "lstm-bf16-clipped",
        "",
        (),
        "bf16-mixed",
        120,
        partial(_lstm, trainer={"gradient_clip_val": 1.0}),
    ),
    Case("transformer-masked-fp16", "", (), "16-mixed", 120, _padded),
    Case("gan-fp32", "", (), "32-true", 200, _gan),
    Case("gan-fp16", "", (), "16-mixed", 200, _gan),
)
