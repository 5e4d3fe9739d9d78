"""Lost against deferred: what swallowed updates cost a run that keeps no FP32 weights.

    python benchmarks/twins.py                        # some ten minutes on two CPU cores

At each learning rate the demo's GPT trains twice on the same batches from the same weights, with
weights held in BF16 (`bf16-true`) and in FP32 (`bf16-mixed`). The share of updates that BF16
swallows is lost in the one and deferred in the other; the validation losses show what that costs.
Each share is a step's mean over parameters, weighted by their non-zero updates, and of these the
median over the recorded steps.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from machine import device_name, machine
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.quiet import quiet
from numwatch.demo.text import Windows, corpus, split

RATES = (1e-3, 1e-4, 1e-5, 1e-6)
LOW, TWIN = "bf16-true", "bf16-mixed"
EVERY_N_STEPS = 50
BATCH = 8
VALIDATION_BATCHES = 100


def train(precision: str, rate: float, steps: int, device: str, directory: Path) -> dict[str, Any]:
    """Trains one run and returns its validation losses and the shares it measured."""
    pl.seed_everything(0, verbose=False)
    config = GPTConfig()
    model = GPT(config, partial(torch.optim.AdamW, lr=rate))
    training, validation = (Windows(part, config.context) for part in split(corpus()))
    monitor = NumericsMonitor(
        EVERY_N_STEPS, amax_every_n_steps=0, dir=str(directory), summary=False, strict=True
    )
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=VALIDATION_BATCHES,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=steps,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    held_out = DataLoader(validation, BATCH, drop_last=True)

    def validation_loss() -> float:
        return float(trainer.validate(model, held_out, verbose=False)[0]["val_loss"])

    start = validation_loss()
    trainer.fit(model, DataLoader(training, BATCH, shuffle=True, drop_last=True), held_out)
    updates = numwatch.open_run(directory).updates().to_pylist()
    bf16 = [row for row in updates if row["storage"] == "bf16"]
    return {
        "precision": precision,
        "start": start,
        "end": validation_loss(),
        "steps_measured": len({row["step"] for row in bf16}),
        "swallowed": median_share(bf16, "swallowed"),
        "deferred": median_share(bf16, "deferred"),
        "edq_normalised": median_share(bf16, "edq_normalised"),
        "lost": any(row["lost"] for row in bf16),
    }


def median_share(rows: list[dict[str, Any]], figure: str) -> float | None:
    """Returns the median over steps of a figure's mean, weighted by non-zero updates."""
    by_step: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for row in rows:
        if row[figure] is not None:
            by_step[row["step"]].append((row[figure], row["nonzero"]))
    means = [
        math.fsum(share * count for share, count in pairs) / sum(count for _, count in pairs)
        for pairs in by_step.values()
    ]
    return statistics.median(means) if means else None


def shown(results: list[dict[str, Any]]) -> Table:
    """Returns one line for each learning rate."""
    headers = (
        "lr",
        f"lost\n{LOW}",
        f"normalised EDQ\n{LOW}",
        f"deferred\n{TWIN}",
        f"validation loss\n{LOW}",
        f"validation loss\n{TWIN}",
    )
    table = Table(*(Column(header, no_wrap=True) for header in headers))
    for result in results:
        low, twin = result[LOW], result[TWIN]
        table.add_row(
            f"{result['lr']:.0e}",
            f"{low['swallowed']:.1%}",
            f"{low['edq_normalised']:.3f}",
            f"{twin['deferred']:.1%}",
            *(f"{run['start']:.3f} → {run['end']:.3f}" for run in (low, twin)),
        )
    return table


def main() -> None:
    """Trains all pairs, prints a table, and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file, default benchmarks/results/…")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: list[dict[str, Any]] = [{"lr": rate} for rate in RATES]
    runs = [(result, precision) for result in results for precision in (LOW, TWIN)]
    with quiet():
        for result, precision in track(runs, "training", console=Console(stderr=True)):
            with tempfile.TemporaryDirectory() as directory:
                result[precision] = train(
                    precision, result["lr"], args.steps, args.device, Path(directory)
                )
    Console(width=100).print(shown(results))
    default = Path(__file__).parent / "results" / f"twins-{device_name(args.device)}.json"
    out = args.out or default
    report = {
        "machine": machine(args.device),
        "steps": args.steps,
        "every_n_steps": EVERY_N_STEPS,
        "batch": BATCH,
        "optimizer": "AdamW",
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
