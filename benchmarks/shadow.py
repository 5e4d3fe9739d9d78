"""How far the estimated flushed share of FP16 gradients is from the one a shadow step measures.

A small GPT trains in FP16 under static loss scales, and so does a surrogate whose gradients are
lognormal (|x| = 2^z, z ~ N(-29, 4)), for which theory has the answer. Shadow steps run in each.
Then the time of a shadow step is taken beside that of the step it shadows.

    python benchmarks/shadow.py
    python benchmarks/shadow.py --steps 600 --scales 1 65536
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from machine import machine
from pytorch_lightning.plugins import MixedPrecision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainee import CONTEXT, Batch, Cell, Trainee

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.precision import precision_of
from numwatch.demo.quiet import quiet
from numwatch.demo.text import Windows, corpus, split
from numwatch.report import summarize
from numwatch.report.shadow_figures import ShadowFigures
from numwatch.shadow import ShadowPass, ShadowStep
from numwatch.taps.selection import select

MU, SIGMA = -29.0, 4.0
SHADOWS = 6
"""Shadow steps of a run."""
BATCH = 8


def scaler_at(scale: float) -> torch.amp.GradScaler:
    """Returns a scaler that stays at its scale, but for 2^-20 of it at an overflow."""
    backoff = 1 - 2.0**-20
    return torch.amp.GradScaler(
        "cpu", init_scale=scale, growth_interval=1 << 30, backoff_factor=backoff
    )


def gpt_run(scale: float, steps: int, directory: str) -> list[ShadowFigures]:
    """Trains the demo's GPT in FP16 and returns what its gradients lost."""
    pl.seed_everything(0, verbose=False)
    config = GPTConfig()
    every = max(steps // SHADOWS, 1)
    monitor = NumericsMonitor(every, 0, summary=False, strict=True, shadow_every_n_steps=every)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        default_root_dir=directory,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler_at(scale))],
    )
    data = Windows(split(corpus())[0], config.context)
    model = GPT(config, precision_of("16-mixed").optimizer)
    trainer.fit(model, DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True))
    return shadows_of(directory)


def surrogate_run(scale: float, directory: str) -> list[ShadowFigures]:
    """Backpropagates lognormal gradients through one layer, a scaled FP16 step each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512))
    with numwatch.watch(
        model,
        dir=directory,
        every_n_steps=1,
        include=["0:grad_output"],
        summary=False,
        strict=True,
        shadow_every_n_steps=1,
    ) as watch:
        for _ in range(SHADOWS):
            x = torch.randn(1024, 64)
            gradient = torch.exp2(torch.randn(1024, 512) * SIGMA + MU)

            def loss_of(model: nn.Module, x: Tensor = x, gradient: Tensor = gradient) -> Tensor:
                return (model(x).float() * gradient).sum()

            watch.shadow(loss_of)
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(model)
            (loss * scale).backward()
            watch.step()
    return shadows_of(directory)


def shadows_of(directory: str) -> list[ShadowFigures]:
    """Returns a record's figures for the gradients that were FP16 when they were seen."""
    run = numwatch.open_run(directory)
    return [
        line
        for line in summarize(run).shadows
        if run.slots[line.slot].rounded and line.flushed_share is not None
    ]


def compared(figures: Iterable[ShadowFigures], theory: float | None = None) -> dict[str, Any]:
    """Returns one row of the table: shares over all elements, and the slots' differences."""
    lines = list(figures)
    nonzero = [line.sampled - line.zeros for line in lines]
    estimates = [line.estimate.value if line.estimate else 0.0 for line in lines]
    off = {
        line.slot: abs(estimate - (line.flushed_share or 0.0))
        for line, estimate in zip(lines, estimates, strict=True)
    }
    worst = max(off, key=off.__getitem__)
    total = sum(nonzero)
    return {
        "slots": len(lines),
        "elements": total,
        "measured": sum(line.flushed for line in lines) / total,
        "estimated": sum(e * n for e, n in zip(estimates, nonzero, strict=True)) / total,
        "theory": theory,
        "median_difference": statistics.median(off.values()),
        "worst_difference": off[worst],
        "worst_slot": worst,
    }


def theory_at(scale: float) -> float:
    """Returns the share of the surrogate's gradients that FP16 flushes at a scale."""
    cut = (-25 - MU - math.log2(scale)) / SIGMA
    return 0.5 * math.erfc(-cut / math.sqrt(2))


def shadow_cost(precision: str, rounds: int) -> dict[str, Any]:
    """Returns the median seconds of a training step and of its shadow, in turns."""
    trainee = Trainee(Cell("gpt", precision, batch=BATCH))
    shadow = ShadowPass(trainee.model, select(trainee.model)[0])
    times: dict[str, list[float]] = {"step": [], "shadow": []}
    for i in range(rounds + 1):
        batch = trainee.batch(i)

        def loss_of(model: nn.Module, batch: Batch = batch) -> Tensor:
            tokens, targets = batch
            return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

        start = time.perf_counter()
        shadow.run(ShadowStep(loss_of))
        middle = time.perf_counter()
        trainee.step(batch)
        if i:
            times["shadow"].append(middle - start)
            times["step"].append(time.perf_counter() - middle)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "precision": precision,
        "step_seconds": medians["step"],
        "shadow_seconds": medians["shadow"],
        "steps_a_shadow_takes": medians["shadow"] / medians["step"],
    }


def show(console: Console, rows: list[dict[str, Any]], costs: list[dict[str, Any]]) -> None:
    """Prints both tables."""
    columns = ("measured", "estimated", "theory", "median difference", "worst difference")
    table = Table(
        "run", "loss scale", *columns, "worst slot", title="flushed share, FP16 gradients"
    )
    for row in rows:
        shares = (row[column.replace(" ", "_")] for column in columns)
        cells = ("" if share is None else f"{share:.4f}" for share in shares)
        table.add_row(row["run"], f"{row['scale']:g}", *cells, row["worst_slot"])
    console.print(table)
    table = Table("precision", "step", "shadow", "in steps")
    for cost in costs:
        seconds = (f"{1e3 * cost[key]:.0f} ms" for key in ("step_seconds", "shadow_seconds"))
        table.add_row(cost["precision"], *seconds, f"{cost['steps_a_shadow_takes']:.2f}")
    console.print(table)


def main() -> None:
    """Runs, prints the tables, and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 8, 1024, 32768])
    parser.add_argument("--steps", type=int, default=300, help="of each GPT run")
    parser.add_argument("--rounds", type=int, default=10, help="timed shadow steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file, default benchmarks/results/…")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=120)
    rows: list[dict[str, Any]] = []
    with quiet():
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`")  # there is none to have
        for scale in args.scales:
            console.print(f"loss scale {scale:g} …", style="dim")
            with tempfile.TemporaryDirectory() as directory:
                found = compared(gpt_run(scale, args.steps, directory))
                rows.append({"run": "GPT", "scale": scale, **found})
            with tempfile.TemporaryDirectory() as directory:
                found = compared(surrogate_run(scale, directory), theory_at(scale))
                rows.append({"run": "lognormal", "scale": scale, **found})
    rows.sort(key=lambda row: row["run"])
    costs = [shadow_cost(precision, args.rounds) for precision in ("fp32", "bf16")]
    show(console, rows, costs)
    out = args.out or Path(__file__).parent / "results" / "shadow-cpu.json"
    report = {
        "machine": machine("cpu"),
        "steps": args.steps,
        "shadow_steps": SHADOWS,
        "flushed": rows,
        "cost": {"batch": BATCH, "context": CONTEXT, "results": costs},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
