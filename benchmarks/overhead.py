"""What watching costs: a bare and a watched training step in turn, in one process.

    python benchmarks/overhead.py                               # numwatch on the GPT in BF16
    python benchmarks/overhead.py --model cnn --precision fp16 --compile
    python benchmarks/overhead.py --all --peers --threads 1     # the whole matrix

A cell is a model in a precision, eager or compiled; each writes a JSON file of its own. `paired.py`
says how the ratio is taken. Peers act on every step, and so do all of numwatch's variants but the
default one. On a machine that does other things too, `--threads 1` is the honest way.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import device_name, machine
from monitors import AMAX, CONTROL, DEFAULT, FULL, PEERS, TENSORS, VARIANTS
from paired import Length, measure, seconds
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from trainee import AUTOCAST, MODELS, SIZES, Cell, Trainee, kernels

RESULTS = Path(__file__).parent / "results"


SLOWEST = 4.0
"""Seconds of a bare step above which a cell is left out: this device has no kernel for it."""


def run_cell(
    cell: Cell, length: Length, keep: Callable[[dict[str, Any]], None], *, peers: bool
) -> dict[str, Any]:
    """Returns a cell's report, and gives it to `keep` after every variant.

    A variant that could not run says why in `failed`, and the cell in `left_out`.
    """
    found: list[dict[str, Any]] = []
    console = Console(stderr=True)
    with kernels(cell), Progress(console=console, transient=True) as progress:
        trainee = Trainee(cell)
        left_out = fault(trainee)
        report = {
            "machine": machine(cell.device),
            "model": cell.model,
            "precision": cell.precision,
            "compiled": cell.compiled,
            "size": cell.size,
            "batch": cell.samples,
            "parameters": trainee.parameters,
            "left_out": left_out,
            "results": found,
        }
        keep(report)
        variants = {} if left_out else VARIANTS | (PEERS if peers else {})
        for name, variant in variants.items():
            task = progress.add_task(f"{cell.name}: {name}", total=1.0)
            try:
                with contextlib.redirect_stdout(None):  # peers print
                    row = measure(
                        variant,
                        lambda: Trainee(cell),
                        length,
                        lambda share, task=task: progress.update(task, completed=share),
                    )
            except Exception as error:  # noqa: BLE001  # one that fails leaves the others
                why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                row = {"failed": why[:60]}
            found.append({"name": name, **row})
            keep(report)
            progress.remove_task(task)
    return report


def fault(trainee: Trainee) -> str | None:
    """Returns why a training can't be measured here, None where it can."""
    batch = trainee.batch(0)
    trainee.step(batch)
    taken = seconds(trainee, batch, lambda _loss: None)
    return f"a bare step takes {taken:.1f} s" if taken > SLOWEST else None


def multiple(row: dict[str, Any], other: dict[str, Any] | None) -> float | None:
    """Returns how many times the overhead of `other` that of `row` is.

    None where one of them was not measured, or where `other`'s is not told from nothing.
    """
    if "cost" not in row or other is None or "cost" not in other:
        return None
    small = other["cost"] - 1
    if small <= 2 * (other["error"] or 0.0) or small <= 0:
        return None
    return (row["cost"] - 1) / small


def by_kind(row: dict[str, Any]) -> list[str]:
    """Returns a line for each kind of step, where there is more than one."""
    ratios = row["by_kind"]
    lines = [f"{ratio:.3f} {kind} ({row['pairs'][kind]})" for kind, ratio in ratios.items()]
    return lines if len(lines) > 1 else []


def table_of(report: dict[str, Any]) -> Table:
    """Returns a report as a table."""
    title = f"{report['model']} {report['precision']}{' compiled' * report['compiled']}"
    if report["left_out"]:
        title += f": left out, {report['left_out']}"
    rows = {row["name"]: row for row in report["results"]}
    table = Table("monitor", "overhead", "± error", "x tensors alone", "x amax only", title=title)
    table.add_column("by kind of step (pairs)", no_wrap=True)
    table.add_column("pairs")
    for name, row in rows.items():
        if "failed" in row:
            table.add_row(name, "failed", row["failed"])
            continue
        ours = name in (CONTROL, DEFAULT, FULL)
        times = [None if ours else multiple(row, rows.get(other)) for other in (TENSORS, AMAX)]
        error = row["error"]
        table.add_row(
            name,
            f"{100 * (row['cost'] - 1):+.1f} %",
            "" if error is None else f"{100 * error:.1f} %",
            *("" if found is None else f"{found:.1f}x" for found in times),
            "\n".join(by_kind(row)),
            str(sum(row["pairs"].values())),
        )
    return table


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Returns the cells that were asked for."""
    common = {"device": args.device, "size": args.size, "batch": args.batch}
    if not args.all:
        return [Cell(args.model, args.precision, args.compile, **common)]
    return [
        Cell(model, precision, compiled, **common)
        for compiled in (False, True)
        for model in MODELS[::-1]
        for precision in AUTOCAST
        if not (model == "cnn" and precision == "fp8")  # float8 is for Linears
    ]


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--all", action="store_true", help="all models, precisions, compiled too")
    parser.add_argument("--model", choices=MODELS, default="gpt")
    parser.add_argument("--precision", choices=list(AUTOCAST), default="bf16")
    parser.add_argument("--compile", action="store_true", help="under torch.compile")
    parser.add_argument("--device", default=device)
    parser.add_argument("--size", choices=SIZES, help="124m on CUDA, small elsewhere, by default")
    parser.add_argument("--batch", type=int, help="samples in a batch, by default the model's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="at most, for each variant")
    parser.add_argument("--pairs", type=int, default=8, help="at least, for each variant")
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--peers", action="store_true", help="needs the extra numwatch[bench]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    args.size = args.size or ("small" if args.device == "cpu" else "124m")
    return args


def main() -> None:
    """Measures, prints a table and writes a JSON file for each cell."""
    args = arguments()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("WANDB_SILENT", "true")
    length = Length(args.seconds, args.pairs, args.warm_up)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for cell in cells_of(args):
        out = args.out / f"overhead-{cell.name}-{device_name(args.device)}.json"

        def keep(report: dict[str, Any], out: Path = out) -> None:
            out.write_text(json.dumps(report, indent=2) + "\n")

        report = run_cell(cell, length, keep, peers=args.peers)
        Console(width=120).print(table_of(report))
        rows = (row for row in report["results"] if row["name"] in VARIANTS and "failed" in row)
        failed += [f"{cell.name}: {row['name']}: {row['failed']}" for row in rows]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
