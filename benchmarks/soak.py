"""What a long run leaves behind: memory, file handles, threads and objects over 100,000 steps.

    python benchmarks/soak.py                    # 100,000 steps of a tiny model
    python benchmarks/soak.py --steps 3000

A tiny model trains under `numwatch.watch` at the default cadence, its record on disk. At 1 %, 10 %,
20 % … of the steps an epoch ends, which flushes what waits to be written, and what the process
holds is counted. Growth is the median slope from the second sample to the last, per 10,000 steps:
what comes before is for whatever is loaded once.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from counting import HELD, held
from machine import device_name, machine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import numwatch

RESULTS = Path(__file__).parent / "results"
PER = 10_000
MOST = {"rss_mib": 2.0, "files": 0.0, "threads": 0.0, "objects": 200.0}
"""What may grow in `PER` steps."""
LONG = 50_000
"""Steps from which resident memory is judged: allocators move it by megabytes in shorter runs."""


def sampled_at(steps: int) -> list[int]:
    """Returns after how many steps to count: 1 %, 10 %, 20 %, … 100 %."""
    return sorted({max(1, steps * percent // 100) for percent in (1, *range(10, 101, 10))})


def soak(
    steps: int,
    directory: Path,
    *,
    device: str = "cpu",
    each: Callable[[int], None] = lambda _step: None,
    progress: Callable[[int], None] = lambda _step: None,
) -> list[dict[str, float]]:
    """Trains watched and returns what the process held, a sample for each of `sampled_at`.

    Args:
        steps: Steps to train.
        directory: Where the record goes.
        device: What to train on.
        each: Called after every step: what a test plants its leak in.
        progress: Told of every step.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(16, 8, device=device), torch.randn(16, 4, device=device)
    due, samples = set(sampled_at(steps)), []
    with numwatch.watch(model, optimizer, dir=directory, summary=False, strict=True) as watch:
        for step in range(1, steps + 1):
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss.detach())
            optimizer.zero_grad()
            each(step)
            progress(step)
            if step in due:
                watch.end_epoch()
                samples.append({"step": step, **held()})
    return samples


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """Returns what each figure grows by in `PER` steps, from the second sample to the last.

    The median slope of all pairs of samples (Theil-Sen): a sawtooth, as memory goes, has none.
    """
    pairs = list(itertools.combinations(samples[1:], 2))
    steps = [(after["step"] - before["step"]) / PER for before, after in pairs]
    found = {}
    for name in HELD:
        grown = (after[name] - before[name] for before, after in pairs)
        slopes = (more / apart for more, apart in zip(grown, steps, strict=True))
        found[name] = round(statistics.median(slopes), 3)
    return found


def leaks(found: dict[str, float], steps: int) -> list[str]:
    """Returns what grew more than it may in a run of so many steps."""
    return [
        f"{name} grew by {grown:g} in {PER} steps, {MOST[name]:g} is allowed"
        for name, grown in found.items()
        if grown > MOST[name] and (name != "rss_mib" or steps >= LONG)
    ]


def table_of(report: dict[str, Any]) -> Table:
    """Returns the samples and the growth as a table."""
    table = Table("step", *HELD, title=f"{report['seconds']:.0f} s")
    for sample in report["samples"]:
        table.add_row(*(f"{sample[name]:g}" for name in ("step", *HELD)))
    table.add_section()
    table.add_row(f"per {PER}", *(f"{report['growth'][name]:+g}" for name in HELD))
    return table


def main() -> None:
    """Soaks, prints the table and writes it as JSON; exit 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/soak-<device>.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("soaking", total=args.steps)
        samples = soak(
            args.steps,
            Path(directory),
            device=args.device,
            progress=lambda step: step % 100 or progress.update(task, completed=step),
        )
    report = {
        "machine": machine(args.device),
        "steps": args.steps,
        "seconds": round(time.perf_counter() - start, 1),
        "samples": samples,
        "growth": growth(samples),
        "allowed": MOST,
    }
    Console(width=100).print(table_of(report))
    out = args.out or RESULTS / f"soak-{device_name(args.device)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    if found := leaks(report["growth"], args.steps):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
