"""A small GAN under manual optimization."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_LATENT = 8


class Gan(pl.LightningModule):
    """Learns to draw points of the plane.

    Args:
        by_hand: Take the logs of probabilities, not the loss that takes logits.
        lr: Learning rate of the critic; the generator's is 1e-3.
    """

    def __init__(self, lr: float = 1e-3, *, by_hand: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.by_hand = by_hand
        self.lr = lr
        self.generator = nn.Sequential(nn.Linear(_LATENT, 64), nn.ReLU(), nn.Linear(64, 2))
        self.critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Trains the critic, then the generator, and returns the critic's loss."""
        (real,) = batch
        for_generator, for_critic = self.optimizers()
        fake = self.generator(torch.randn(len(real), _LATENT, device=self.device))
        truth = self._loss(self.critic(real), 1.0) + self._loss(self.critic(fake.detach()), 0.0)
        self._descend(for_critic, truth)
        self._descend(for_generator, self._loss(self.critic(fake), 1.0))
        return truth.detach()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns the generator's and the critic's."""
        return [
            torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.99))
            for net, lr in ((self.generator, 1e-3), (self.critic, self.lr))
        ]

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def _loss(self, logits: Tensor, truth: float) -> Tensor:
        if self.by_hand:
            p = torch.sigmoid(logits)
            return -(truth * torch.log(p) + (1 - truth) * torch.log(1 - p)).mean()
        return F.binary_cross_entropy_with_logits(
            logits.float(), torch.full_like(logits, truth, dtype=torch.float32)
        )
