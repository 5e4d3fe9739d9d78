"""Ranks that do not do the same: `uneven_ranks.py DIRECTORY NAME`, one process a rank."""

import json
import random
import sys
import warnings
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import numwatch
import numwatch.ranks.group
import numwatch.session
from numwatch.taps.collector import Collector
from numwatch.taps.delivery import Delivery

OPTIONS = {"every_n_steps": 1, "amax_every_n_steps": 0, "summary": False}
RUNS = 100


@contextmanager
def told(name: str):
    """Prints what a rank was warned of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    texts = [str(one.message) for one in warned]
    print(json.dumps([name, [text for text in texts if text.startswith("numwatch")]]))


class Branches(nn.Module):
    """Calls a branch or leaves it, as its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor, taken: list[bool]) -> torch.Tensor:
        x = self.stem(x)
        for branch, take in zip(self.branches, taken, strict=True):
            x = branch(x) if take else x
        return x


def steps(model, directory, taken_by_step, **options) -> None:
    """Trains each rank alone: nothing but numwatch brings them together."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with numwatch.watch(model, optimizer, dir=directory, **{**OPTIONS, **options}) as watch:
        for taken in taken_by_step:
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4), taken).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)


def skipped_modules(directory: Path) -> None:
    """A hundred runs in which each rank leaves out other modules at random."""
    rank = dist.get_rank()
    for run in range(RUNS):
        chance = random.Random(1000 * run + rank)
        taken = [[chance.random() < 0.5 for _ in range(3)] for _ in range(2)]
        steps(Branches(), directory / str(run), taken, audit=False, block_every_n_steps=0)


def stages(directory: Path) -> None:
    """A pipeline: each rank has a module the other has not."""
    rank = dist.get_rank()
    model = nn.ModuleDict({f"stage{rank}": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with numwatch.watch(model, optimizer, dir=directory, **OPTIONS) as watch:
        optimizer.zero_grad()
        model[f"stage{rank}"](torch.ones(2, 4)).sum().backward()
        optimizer.step()
        watch.step()


def local_experts(directory: Path) -> None:
    """Each rank has an expert of its own under the same name, beside what all of them share."""
    model = nn.ModuleDict({"shared": nn.Linear(4, 4), "expert": nn.Linear(4, 4)})
    nn.init.ones_(model["shared"].weight)
    nn.init.constant_(model["expert"].weight, 1.0 + dist.get_rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with numwatch.watch(model, optimizer, dir=directory, **OPTIONS) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            model["expert"](model["shared"](torch.ones(2, 4))).sum().backward()
            optimizer.step()
            watch.step()


def broken_rank(directory: Path) -> None:
    """numwatch itself fails on rank 1, after some steps."""
    seen = [0]

    def fails(self, *arguments):
        seen[0] += 1
        if seen[0] > 100:
            raise RuntimeError("planted")
        return see(self, *arguments)

    see = Collector.see
    Collector.see = fails if dist.get_rank() == 1 else see
    with told("broken_rank"):
        steps(Branches(), directory, [[True] * 3] * 20)
    Collector.see = see


def uneven_steps(directory: Path) -> None:
    """Rank 1 has fewer batches than rank 0."""
    with told("uneven_steps"):
        steps(Branches(), directory, [[True] * 3] * (6 - 2 * dist.get_rank()))


def first_rank_alone(directory: Path) -> None:
    """Only rank 0 watches, as scripts do that know of one logger a run."""
    numwatch.ranks.group.MEETING_SECONDS = 1.0
    with told("first_rank_alone"):
        if dist.get_rank() == 0:
            steps(Branches(), directory, [[True] * 3] * 4)


def raising_rank(directory: Path) -> None:
    """Rank 1 raises in its third step; the other comes to its end."""
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watching = numwatch.watch(model, optimizer, dir=directory, **OPTIONS)
    with told("raising_rank"), suppress(ValueError), watching as watch:
        for step in range(5):
            if (step, dist.get_rank()) == (2, 1):
                raise ValueError("planted")
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4), [True] * 3).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)


def first_rank_missing(directory: Path) -> None:
    """Rank 0, which would keep the record, does not watch."""
    numwatch.ranks.group.MEETING_SECONDS = 1.0
    with told("first_rank_missing"):
        if dist.get_rank() == 1:
            steps(Branches(), directory, [[True] * 3] * 3)


def late_copies(directory: Path) -> None:
    """Copies arrive late, and on each rank at another time, as they do from a device."""
    arrived, asked = Delivery.arrived, [0]

    def late(self) -> bool:
        asked[0] += 1
        return asked[0] % (3 + dist.get_rank()) == 0 and arrived(self)

    Delivery.arrived = late
    steps(Branches(), directory, [[True] * 3] * 12)
    Delivery.arrived = arrived


def two_watches(directory: Path) -> None:
    """Two records of one run, several times."""
    for run in range(10):
        model = Branches()
        with numwatch.watch(model, dir=directory / f"{run}-other", **OPTIONS) as other:
            steps(model, directory / str(run), [[True] * 3] * 2)
            other.step()


def named_with_a_space(directory: Path) -> None:
    """Names that hold a space."""
    model = nn.ModuleDict({"my layer": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with numwatch.watch(model, optimizer, dir=directory, **OPTIONS) as watch:
        model["my layer"](torch.ones(2, 4)).sum().backward()
        optimizer.step()
        watch.step()


def one_rank_overflows(directory: Path) -> None:
    """Rank 1 alone meets an inf, in the second step, which both leave out."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with numwatch.watch(model, optimizer, dir=directory, **OPTIONS, origin=False) as watch:
        for step in range(3):
            x = torch.ones(2, 4)
            if (step, dist.get_rank()) == (1, 1):
                x[0, 0] = torch.inf
            model(x).sum().backward()
            if step != 1:
                optimizer.step()
            watch.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(dist.get_rank())
    numwatch.session.PATIENCE_SECONDS = 20.0
    for name in sys.argv[2:]:
        globals()[name](Path(sys.argv[1]) / name)
        dist.barrier()
    dist.destroy_process_group()
