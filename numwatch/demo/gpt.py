"""A small GPT, pre-norm, as a LightningModule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from numwatch.demo.text import VOCABULARY

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model. `width` must be a multiple of `heads`."""

    vocabulary: int = VOCABULARY
    context: int = 32
    layers: int = 2
    heads: int = 4
    width: int = 64
    dropout: float = 0.05


class Attention(nn.Module):
    """Causal self-attention, [batch, time, width] to the same."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Attends to the past."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The feed-forward half of a block, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.width, 4 * config.width)
        self.proj = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Widens, bends, narrows: [..., width] to the same."""
        return self.proj(F.gelu(self.fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and inside a residual branch with dropout."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.attn = Attention(config)
        self.ln2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what attention and MLP found: [batch, time, width] to the same."""
        x = x + self.dropout(self.attn(self.ln1(x)))
        return x + self.dropout(self.mlp(self.ln2(x)))  # type: ignore[no-any-return]


class GPT(pl.LightningModule):
    """Predicts the next character; logs `loss` and `val_loss`, cross entropies in nats.

    Args:
        config: Sizes.
        make_optimizer: Makes the optimizer from the parameters.
    """

    def __init__(self, config: GPTConfig, make_optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.config = config
        self.make_optimizer = make_optimizer
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Returns logits [batch, time, vocabulary] for int64 `codes` [batch, time]."""
        positions = torch.arange(codes.shape[1], device=codes.device)
        x = self.dropout(self.tokens(codes) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))  # type: ignore[no-any-return]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the mean cross entropy of a batch, computed in FP32 in every precision."""
        codes, targets = batch
        logits = self(codes).float()
        loss: Tensor = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Returns the loss of a batch."""
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Logs the loss of a batch."""
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer over all parameters."""
        return self.make_optimizer(self.parameters())
