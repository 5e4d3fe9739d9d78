"""What emulation costs: a step with every operand rounded over the same step without.

    python benchmarks/emulate.py               # a few minutes on two CPU cores

A bare GPT and one emulated under each recipe take turns in one process; the ratio of each pair of
steps is taken, and of these the median. Every Linear but the head is emulated.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpt import GPT
from machine import device_name, machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import numwatch
from numwatch.formats import BLOCK_FORMATS, get_block_format, get_format
from numwatch.plan import OPERAND_ROLES, ModulePlan, Operand, Plan
from numwatch.recipes.spec import parse_recipe

RECIPES = {
    "FP8, current scaling": ("e4m3 current", "e4m3 current", "e5m2 current"),
    "FP8, delayed scaling": ("e4m3 delayed", "e4m3 delayed", "e5m2 delayed"),
    "FP8, a scale a row": ("e4m3 rowwise", "e4m3 rowwise", "e5m2 rowwise"),
    "MXFP8": ("mxfp8-e4m3 mx:rule=rceil",) * 3,
    "NVFP4": (
        "nvfp4 nvfp4:hadamard=true",
        "nvfp4 nvfp4:square=true",
        "nvfp4 nvfp4:hadamard=true stochastic",
    ),
}


def plan_of(model: nn.Module, operands: tuple[str, ...]) -> Plan:
    """Returns a plan that rounds every Linear but the head alike."""
    planned = dict(zip(OPERAND_ROLES, map(_operand, operands), strict=True))
    return Plan(
        "fp8",
        modules=tuple(
            ModulePlan(name, planned)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "head"
        ),
    )


def _operand(text: str) -> Operand:
    fmt, recipe, *rounding = text.split()
    found = get_block_format(fmt) if fmt in BLOCK_FORMATS else get_format(fmt)
    return Operand(found, parse_recipe(recipe), *rounding)


def stepper(operands: tuple[str, ...] | None, device: str, batch: int) -> Callable[[], None]:
    """Returns what trains one step in BF16 autocast."""
    torch.manual_seed(0)
    model = GPT(96, 128, 4, 256, 4).to(device)
    if operands is not None:
        numwatch.emulate(model, plan_of(model, operands))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 96, (batch, 129), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Times, prints the table, writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bare = stepper(None, arguments.device, arguments.batch)
    rows = []
    for name, operands in track(RECIPES.items(), "timing", transient=True):
        emulated = stepper(operands, arguments.device, arguments.batch)
        pairs = []
        for _ in range(arguments.pairs + 2):
            seconds = []
            for step in (bare, emulated):
                began = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - began)
            pairs.append(seconds)
        ratios = [there / here for here, there in pairs[2:]]
        rows.append(
            {
                "recipe": name,
                "cost": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "bare_seconds": statistics.median(here for here, _ in pairs[2:]),
            }
        )
    table = Table("recipe", "emulated step / bare step", "lowest", "highest")
    for row in rows:
        figures = (f"{row[key]:.2f}" for key in ("cost", "lowest", "highest"))
        table.add_row(row["recipe"], *figures)
    Console().print(table)
    content = {**machine(arguments.device), "batch": arguments.batch, "rows": rows}
    name = f"emulate-{device_name(arguments.device)}.json"
    path = Path(__file__).parent / "results" / name
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
