"""Several ranks in a plain PyTorch loop, DDP or FSDP2, watched on all of them.

torchrun --standalone --nproc-per-node 2 examples/distributed.py --strategy fsdp2
"""

import argparse
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import numwatch

STEPS, BATCH = 60, 32


def wrapped(model: nn.Sequential, strategy: str, device: torch.device) -> nn.Module:
    """Spreads a model over the ranks."""
    if strategy == "ddp":
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def main() -> None:
    """Trains on this rank's part of each batch; rank 0 keeps the record of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--dir", default="runs/distributed", help="where the record goes")
    chosen = parser.parse_args()
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=5))
    rank = dist.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")

    torch.manual_seed(0)  # the same weights everywhere
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))
    model = model.to(device)
    teacher = torch.randn(64, 10).to(device)
    parallel = wrapped(model, chosen.strategy, device)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(rank)  # other data on each rank

    # On every rank, and on the model inside DDP: its names are the model's own.
    with numwatch.watch(model, optimizer, dir=chosen.dir, every_n_steps=20) as watch:
        for _ in range(STEPS):
            x = torch.randn(BATCH, 64, generator=generator).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(parallel(x), (x @ teacher).argmax(dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
