"""How numwatch's cost grows: with slots, with steps and with the elements of a tensor.

    python benchmarks/scale.py                          # 10 to 10,000 slots
    python benchmarks/scale.py --slots 10 100 --quick

Each point is a process of its own, so that memory is its own. Over slots, a model of many small
Linears trains beside a bare twin; over steps, one size of it trains longer; over elements, four
Linears and their batch grow. Host seconds are what the record says numwatch took of a step; the
ratio is that of pairs. Memory is told three ways: bytes on the device (`watch` says so itself),
Python's (tracemalloc, at its peak over the watching, in a run of its own) and what the process's
resident memory grew by over the watching: when it is over, and at its peak, to which the diagnosis
at the end belongs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import device_name, machine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
SLOTS = (10, 100, 1_000, 10_000)
STEPS = (60, 240, 960)
WIDTHS = (64, 128, 256, 512, 1_024)
CLAIM_SLOTS, CLAIM_SECONDS, CLAIM_MIB = 10_000, 0.1, 95.0
"""At so many slots a full step's host work and numwatch's memory, 100 MB, stay below these."""
COLUMNS = {
    "slots": "{:g}",
    "steps": "{:g}",
    "elements": "{:g}",
    "full_ms": "{:.2f}",
    "amax_ms": "{:.2f}",
    "off_ms": "{:.3f}",
    "full_ratio": "{:.2f}",
    "device_mib": "{:.2f}",
    "python_mib": "{:.1f}",
    "rss_mib": "{:.1f}",
    "peak_mib": "{:.1f}",
    "bytes_per_row": "{:.0f}",
}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the exponent b of the least-squares fit of y = a x^b, of positive figures."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponents(rows: list[dict[str, Any]], axis: str, least: float) -> dict[str, float]:
    """Returns how each figure grows along an axis, over the points from `least` on."""
    seen = [row for row in rows if row[axis] >= least]
    found = {}
    for name in ("full_ms", "amax_ms", "off_ms"):
        values = [row[name] for row in seen]
        if len(values) > 1 and min(values) > 0:
            found[name] = round(slope([row[axis] for row in seen], values), 3)
    return found


def point(*arguments: object) -> dict[str, Any]:
    """Returns what `scale_point.py` measures in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale_point.py"))]
    command += map(str, arguments)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table_of(title: str, rows: list[dict[str, Any]], growth: dict[str, float]) -> Table:
    """Returns an axis as a table, growth exponents below."""
    names = [name for name in COLUMNS if name in rows[0]]
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*(COLUMNS[name].format(row[name]) for name in names))
    table.add_section()
    cells = (f"^{growth[name]:.2f}" if name in growth else "" for name in names[1:])
    table.add_row("growth", *cells)
    return table


def claims(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns what is claimed of `CLAIM_SLOTS` and whether it held; None if not measured."""
    row = next((row for row in rows if row["slots"] >= 0.99 * CLAIM_SLOTS), None)
    if row is None:
        return None
    # Of memory the largest honest figure: what the process grew by at its peak.
    seconds, mib = row["full_ms"] / 1e3, row["peak_mib"]
    return {
        "slots": row["slots"],
        "full_seconds": seconds,
        "limit_seconds": CLAIM_SECONDS,
        "peak_mib": mib,
        "limit_mib": CLAIM_MIB,
        "holds": seconds < CLAIM_SECONDS and mib < CLAIM_MIB,
    }


def main() -> None:
    """Measures each axis, prints a table of each, and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="*", default=SLOTS)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=8, help="of full, amax and bare steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/scale-<device>.json")
    args = parser.parse_args()
    common = ("--threads", args.threads, "--device", args.device)
    rounds = ("--rounds", args.rounds)
    axes: dict[str, list[dict[str, Any]]] = {"slots": [], "steps": [], "elements": []}
    total = 2 * len(args.slots) + len(args.steps) + len(args.widths)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        for slots in args.slots:
            row = point("--slots", slots, *rounds, *common)
            progress.advance(task)
            memory = point("--slots", slots, "--rounds", 0, "--trace", *common)
            axes["slots"].append({**row, "python_mib": memory["python_mib"]})
            progress.advance(task)
        for steps in args.steps:
            axes["steps"].append(point("--slots", 60, "--steps", steps, *common))
            progress.advance(task)
        for width in args.widths:
            axes["elements"].append(point("--width", width, *rounds, *common))
            progress.advance(task)
    growth = {
        "slots": exponents(axes["slots"], "slots", 100),
        "steps": exponents(axes["steps"], "steps", 0),
        "elements": exponents(axes["elements"], "elements", 2**16),
    }
    console = Console(width=120)
    for axis, rows in axes.items():
        if rows:
            console.print(table_of(f"over {axis}", rows, growth[axis]))
    claimed = claims(axes["slots"])
    report = {
        "machine": {**machine(args.device), "threads": args.threads},
        "axes": axes,
        "exponents": growth,
        "claims": claimed,
    }
    out = args.out or RESULTS / f"scale-{device_name(args.device)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    if claimed and not claimed["holds"]:
        sys.exit(f"more than is claimed at {CLAIM_SLOTS} slots: {claimed}")


if __name__ == "__main__":
    main()
