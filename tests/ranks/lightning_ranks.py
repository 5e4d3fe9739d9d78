"""Lightning's strategies on several ranks: `lightning_ranks.py DIRECTORY NAME ...`."""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numwatch.callbacks import NumericsMonitor

STEPS = 6


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.LayerNorm(16), nn.Linear(16, 4)
        )

    def training_step(self, batch, _index):
        x, y = batch
        return nn.functional.mse_loss(self.net(x).float(), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Sharded(Net):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        if not isinstance(self.net[0].weight, torch.distributed.tensor.DTensor):
            for layer in (self.net[0], self.net[4], self.net):
                fully_shard(layer, mesh=mesh)


class ShardedAtTheRoot(Net):
    """Whose whole weights FSDP2 leaves in place after a validation."""

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def validation_step(self, batch, _index):
        self.net(batch[0])


class Parallel(Net):
    def configure_model(self):
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        del self.net[3]  # a norm would need the whole hidden dimension
        plan = {"0": ColwiseParallel(), "3": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


def fit(directory, make_model, strategy, *, watched=True, validate=False, **options):
    """Trains, and returns the weights' digest on this rank and what Lightning warned of."""
    seed_everything(1, verbose=False)
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(
        torch.randn(8 * STEPS * 2, 8, generator=generator),
        torch.randn(8 * STEPS * 2, 4, generator=generator),
    )
    monitor = NumericsMonitor(
        every_n_steps=1, amax_every_n_steps=0, summary=False, strict=True, dir=str(directory)
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=dist.get_world_size() if dist.is_initialized() else 2,
        strategy=strategy,
        max_epochs=1,
        val_check_interval=3 if validate else None,
        callbacks=[monitor] if watched else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loaders = [DataLoader(data, batch_size=8) for _ in range(1 + validate)]
    trainer.fit(model, *loaders)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        own = parameter.detach()
        own = own.to_local() if hasattr(own, "to_local") else own
        digest.update(own.contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


def both(name: str, directory: Path, make) -> None:
    """Trains with and without numwatch; training must be the same to the bit."""
    digests = [make(directory / name, watched=watched) for watched in (True, False)]
    print(json.dumps([name, digests[0] == digests[1]]))


def ddp(name: str, directory: Path) -> None:
    both(name, directory, lambda d, watched: fit(d, Net, DDPStrategy(), watched=watched))


def ddp_bf16(name: str, directory: Path) -> None:
    def make(d, watched):
        return fit(d, Net, DDPStrategy(), watched=watched, precision="bf16-mixed")

    both(name, directory, make)


def fp16_plugins():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def ddp_fp16(name: str, directory: Path) -> None:
    """A scale so large that the first steps are skipped."""

    def make(d, watched):
        return fit(d, Net, DDPStrategy(), watched=watched, **fp16_plugins())

    both(name, directory, make)


def fsdp2(name: str, directory: Path) -> None:
    def make(d, watched):
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return fit(d, Sharded, strategy, watched=watched)

    both(name, directory, make)


def validated(name: str, directory: Path) -> None:
    def make(d, watched):
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return fit(d, ShardedAtTheRoot, strategy, watched=watched, validate=True)

    both(name, directory, make)


def tensor_parallel(name: str, directory: Path) -> None:
    def make(d, watched):
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
        return fit(d, Parallel, strategy, watched=watched)

    both(name, directory, make)


if __name__ == "__main__":
    warnings.filterwarnings("error", message="numwatch")
    for each in sys.argv[2:]:
        globals()[each](each, Path(sys.argv[1]))
