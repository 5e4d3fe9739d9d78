"""Models that several cases train."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .data import CLASSES, FEATURES

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Model(pl.LightningModule):
    """A net with a loss: of a batch (inputs …, target) it takes `loss(net(*inputs), target)`.

    Args:
        net: The net.
        loss: Takes outputs and targets.
        make_optimizer: Makes the optimizer from the parameters.
        schedule: Factor of the learning rate at each step; 1 by default.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        make_optimizer: MakeOptimizer,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = make_optimizer
        self.schedule = schedule

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Returns the loss of a batch."""
        *inputs, target = batch
        return self.loss(self.net(*inputs), target)

    def configure_optimizers(self) -> Any:
        """Returns the optimizer over all parameters, and its schedule."""
        optimizer = self.make_optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def adamw(lr: float = 1e-3, **options: Any) -> MakeOptimizer:
    """Returns what makes an AdamW."""
    return partial(torch.optim.AdamW, lr=lr, **options)


def sgd(lr: float, **options: Any) -> MakeOptimizer:
    """Returns what makes an SGD."""
    return partial(torch.optim.SGD, lr=lr, **options)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross entropy in FP32, of logits [batch, classes] or [batch, time, ·]."""
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error in FP32."""
    return F.mse_loss(outputs.float(), targets.float())


def mlp(
    *widths: int, activation: Callable[[], nn.Module] = nn.ReLU, last: int = CLASSES
) -> nn.Sequential:
    """Returns Linears from FEATURES over `widths` to `last`, an activation between any two."""
    layers: list[nn.Module] = []
    sizes = (FEATURES, *widths)
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], last))


def convnet(**norm: Any) -> nn.Sequential:
    """Returns a CNN for [batch, 1, side, side] with BatchNorms, `norm` being their arguments."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16, **norm),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32, **norm),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )


class Recurrent(nn.Module):
    """Embedding, LSTM, Linear: codes [batch, time] to logits [batch, time, vocabulary]."""

    def __init__(self, vocabulary: int = 96, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        """Predicts the next character."""
        # oneDNN has no LSTM for what autocast makes of it on a CPU.
        with torch.backends.mkldnn.flags(enabled=False):
            states, _ = self.lstm(self.tokens(codes))
        return self.head(states)


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


class Attention(nn.Module):
    """Self-attention written out, [batch, time, width] to the same.

    Args:
        width: Features.
        heads: Heads.
        softmax: Over the last dimension of the scores.
    """

    def __init__(
        self, width: int = 32, heads: int = 2, softmax: Callable[[Tensor], Tensor] = _softmax
    ) -> None:
        super().__init__()
        self.heads = heads
        self.softmax = softmax
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends, where `mask` [batch, 1, time, time] is given to where it is True alone."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = self.softmax(scores).to(v.dtype)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, time, width))


class Encoder(nn.Module):
    """A transformer block over vectors [batch, time, width], pooled to class logits.

    Args:
        attention: Its attention, called with x and, where the batch has one, a mask.
        norm: Makes its norms from a width.
        width: Features.
    """

    def __init__(
        self,
        attention: nn.Module | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.ln1 = norm(width)
        self.attention = attention or Attention(width)
        self.ln2 = norm(width)
        self.fc = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, *mask: Tensor) -> Tensor:
        """Returns logits [batch, classes]."""
        x = x + self.attention(self.ln1(x), *mask)
        x = x + self.proj(F.gelu(self.fc(self.ln2(x))))
        return self.head(x.mean(dim=1))
