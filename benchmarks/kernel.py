"""What one pass over a tensor costs beside the cheapest things torch can do with it.

Each round times numwatch's full pass, its amax pass, `x.norm()` and `x.abs().max()` one after the
other in one process; the medians over all rounds are compared. `x.norm()` is a pure read.

    python benchmarks/kernel.py                  # 1K to 16M elements, on the CPU
    python benchmarks/kernel.py --sizes 16M 64M --dtypes float32 --threads 2
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import device_name, machine

from numwatch.stats import accumulate, accumulate_amax, new_rows, warm_up

UNITS = {"K": 1 << 10, "M": 1 << 20}


def size(text: str) -> int:
    """Returns the number of elements that `16M` or `1000` means."""
    unit = UNITS.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def paired_medians(
    tasks: dict[str, Callable[[], object]], device: str, seconds: float
) -> dict[str, float]:
    """Returns each task's median time in microseconds, all tasks taking turns for so long."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, task in tasks.items():
            synchronize(device)
            start = time.perf_counter()
            task()
            synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def synchronize(device: str) -> None:
    """Waits for the GPU, where there is one to wait for."""
    if device != "cpu":
        torch.cuda.synchronize()


def measure(n: int, dtype: torch.dtype, device: str, seconds: float) -> dict[str, float | str]:
    """Returns one row of the table: medians in microseconds and ratios to `x.norm()`."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    counts, reals = new_rows(1, device)
    row, row_reals = counts[0], reals[0]
    medians = paired_medians(
        {
            "full": lambda: accumulate(x, row, row_reals),
            "amax": lambda: accumulate_amax(x, row, row_reals),
            "norm": x.norm,
            "absmax": lambda: x.abs().max(),
        },
        device,
        seconds,
    )
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "numel": n,
        **{f"{name}_us": round(taken, 2) for name, taken in medians.items()},
        "full_per_norm": round(medians["full"] / medians["norm"], 3),
        "full_per_absmax": round(medians["full"] / medians["absmax"], 3),
        "amax_per_norm": round(medians["amax"] / medians["norm"], 3),
    }


def main() -> None:
    """Prints the table and writes it with its circumstances as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1K", "16K", "256K", "1M", "4M", "16M"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each line")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/kernel-<device>.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        warm_up()

    columns = ("full", "amax", "norm", "absmax")
    ratios = ("full_per_norm", "full_per_absmax", "amax_per_norm")
    print(f"{'dtype':9} {'numel':>10}", *(f"{name + ' us':>11}" for name in columns), end=" ")
    print("  full/norm  full/absmax  amax/norm")
    rows = []
    for name in args.dtypes:
        for text in args.sizes:
            row = measure(size(text), getattr(torch, name), args.device, args.seconds)
            rows.append(row)
            print(f"{row['dtype']:9} {row['numel']:>10}", end=" ")
            print(*(f"{row[f'{column}_us']:>11.1f}" for column in columns), end=" ")
            print("{:>11.2f} {:>12.2f} {:>10.2f}".format(*(row[ratio] for ratio in ratios)))

    out = args.out or Path(__file__).parent / "results" / f"kernel-{device_name(args.device)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(args.device), "rows": rows}, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
