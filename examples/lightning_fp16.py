"""FP16 mixed precision in Lightning, watched: the one line to add is the callback.

    python examples/lightning_fp16.py

On a CUDA machine `Trainer(precision="16-mixed")` would do. On a CPU Lightning turns that into
BF16 without a gradient scaler, so the plugin is given here; it works on both.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numwatch.callbacks import NumericsMonitor


class Classifier(pl.LightningModule):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10)
        )

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        x, labels = batch
        loss = nn.functional.cross_entropy(self.layers(x), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def batches() -> DataLoader:
    """Makes labels a linear teacher gave."""
    x = torch.randn(4096, 64)
    labels = (x @ torch.randn(64, 10)).argmax(dim=1)
    return DataLoader(TensorDataset(x, labels), batch_size=64, shuffle=True)


def main() -> None:
    """Trains two epochs, watched."""
    pl.seed_everything(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Grows more often than the default of 2000 steps, to show something in so short a run.
    scaler = torch.amp.GradScaler(device, growth_interval=20)
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        plugins=[MixedPrecision("16-mixed", device, scaler)],
        max_epochs=2,
        logger=TensorBoardLogger("runs", name="fp16"),
        callbacks=[NumericsMonitor(every_n_steps=10)],
    )
    trainer.fit(Classifier(), batches())
    print(f"\nnumwatch report {trainer.log_dir}")


if __name__ == "__main__":
    main()
