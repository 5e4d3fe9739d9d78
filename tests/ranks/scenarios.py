"""What the ranks of a test do: `scenarios.py DIRECTORY NAME ...`, one process a rank."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from exact import LR, exact_data, exact_loss, exact_model
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel

import numwatch

EVERY_STEP = {"every_n_steps": 1, "amax_every_n_steps": 0, "summary": False, "update_samples": None}


def train(model, optimizer, directory, *, inner=None, **options) -> None:
    """Trains on this rank's part of each batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs, targets = exact_data(world=world)
    with numwatch.watch(inner or model, optimizer, dir=directory, **{**EVERY_STEP, **options}) as w:
        for x, y in zip(inputs, targets, strict=True):
            optimizer.zero_grad()
            loss = exact_loss(model(x[rank]), y[rank])
            loss.backward()
            optimizer.step()
            w.step(loss=loss)


def ddp(directory: Path) -> None:
    model = exact_model()
    wrapped = DistributedDataParallel(model)
    train(wrapped, torch.optim.SGD(model.parameters(), lr=LR, momentum=0.5), directory, inner=model)


def fsdp2(directory: Path) -> None:
    model = exact_model()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    fully_shard(model)
    train(model, torch.optim.SGD(model.parameters(), lr=LR, momentum=0.5), directory)


def compressed(directory: Path) -> None:
    """Gradients so small that averaging them in FP16 flushes some."""
    model = exact_model().float()
    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, fp16_compress_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with numwatch.watch(model, optimizer, dir=directory, **EVERY_STEP) as watch:
        generator = torch.Generator().manual_seed(dist.get_rank())
        loss = wrapped(torch.randn(8, 4, generator=generator)).square().mean() * 2.0**-24
        loss.backward()
        optimizer.step()
        watch.step(loss=loss)


def sharded_scaler(directory: Path) -> None:
    """FP16 on shards; in the second step rank 1 alone overflows, and no rank may step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    scaler = ShardedGradScaler(device="cpu", init_scale=2.0**8)
    with numwatch.watch(model, optimizer, scaler=scaler, dir=directory, **EVERY_STEP) as watch:
        for step in range(3):
            optimizer.zero_grad()
            x = torch.ones(8, 4) * (1e6 if (step, dist.get_rank()) == (1, 1) else 1)
            with torch.autocast("cpu", torch.float16):
                loss = model(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss=loss)


SCENARIOS = {each.__name__: each for each in (ddp, fsdp2, compressed, sharded_scaler)}


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "No device id is provided")
    warnings.filterwarnings("ignore", "Found a non-scalar tensor")  # torch's scaler on DTensors
    from datetime import timedelta

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name in sys.argv[2:]:
        torch.manual_seed(0)
        SCENARIOS[name](Path(sys.argv[1]) / name)
        dist.barrier()
    dist.destroy_process_group()
