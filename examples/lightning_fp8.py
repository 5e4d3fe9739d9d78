"""FP8 training in Lightning through torchao, watched: two callbacks.

    pip install '.[fp8]'
    python examples/lightning_fp8.py [tensorwise|rowwise|rowwise_with_gw_hp]

Runs on any machine: the GEMMs take `torch._scaled_mm` where it can do the recipe, and are
emulated where not. The report shows what torchao's own scaling flushes and saturates.
"""

import sys

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numwatch.callbacks import Float8Training, NumericsMonitor


class Regression(pl.LightningModule):
    """A small regression."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU())
        self.head = nn.Linear(128, 16)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        x, y = batch
        loss = nn.functional.mse_loss(self.head(self.body(x)).float(), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def batches() -> DataLoader:
    """Makes targets a random wave gave."""
    x = torch.randn(4096, 64)
    y = torch.sin(x @ torch.randn(64, 16) / 8)
    # FP8 GEMMs on CUDA want the tokens of a batch in multiples of 16.
    return DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, drop_last=True)


def main(recipe: str = "tensorwise") -> None:
    """Trains two epochs in FP8, watched."""
    pl.seed_everything(0)
    trainer = pl.Trainer(
        devices=1,
        precision="bf16-mixed",
        max_epochs=2,
        logger=TensorBoardLogger("runs", name="fp8"),
        callbacks=[
            Float8Training(recipe, exclude=["head"]),  # the layer before the loss stays BF16
            NumericsMonitor(every_n_steps=10),
        ],
    )
    trainer.fit(Regression(), batches())
    print(f"\nnumwatch report {trainer.log_dir}")


if __name__ == "__main__":
    main(*sys.argv[1:])
