"""What one pass over a tensor costs beside the cheapest things torch can do with it.

Each round times numwatch's full pass, its amax pass, `y.copy_(x)`, `x.norm()` and `x.abs().max()`
one after the other in one process; the medians over all rounds are compared. `x.norm()` is a pure
read, and a copy tells what the memory gives. Then a group of small tensors, as of a model's
parameters: in one call, one by one, and each one's norm.

    python benchmarks/kernel.py                  # 1K to 64M elements, on the CPU
    python benchmarks/kernel.py --device cuda    # and 256M, on a GPU
    python benchmarks/kernel.py --sizes 16M 256M --dtypes float32 --threads 2
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from machine import device_name, machine

from numwatch.stats import accumulate, accumulate_amax, accumulate_group, new_rows, warm_up

UNITS = {"K": 1 << 10, "M": 1 << 20}
SIZES = ("1K", "16K", "256K", "1M", "4M", "16M", "64M")
PASSES = ("full", "amax", "copy", "norm", "absmax")
RATIOS = (("full", "norm"), ("full", "absmax"), ("full", "copy"), ("amax", "norm"))
GROUP_TASKS = ("group", "group_amax", "one_by_one", "norms")

Row = dict[str, float | str]


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


def noise(n: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Returns n normal elements, the same on every device."""
    return torch.randn(n, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def measure(n: int, dtype: torch.dtype, device: str, seconds: float) -> Row:
    """Returns one row of the table: medians in microseconds, GB/s and ratios.

    A pass moves the bytes of x, a copy twice as many.
    """
    x = noise(n, dtype, device)
    y = torch.empty_like(x)
    rows = new_rows(1, device)
    medians = paired_medians(
        {
            "full": lambda: accumulate(x, *rows),
            "amax": lambda: accumulate_amax(x, *rows),
            "copy": lambda: y.copy_(x),
            "norm": x.norm,
            "absmax": lambda: x.abs().max(),
        },
        device,
        seconds,
    )
    moved = {name: x.nbytes * (2 if name == "copy" else 1) for name in PASSES}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "numel": n,
        **{f"{name}_us": round(taken, 2) for name, taken in medians.items()},
        **{f"{name}_gb_s": round(moved[name] / medians[name] / 1e3, 2) for name in PASSES},
        **{f"{a}_per_{b}": round(medians[a] / medians[b], 3) for a, b in RATIOS},
    }


def measure_group(tensors: int, n: int, dtype: torch.dtype, device: str, seconds: float) -> Row:
    """Returns what so many tensors of n elements cost: medians in microseconds for each tensor."""
    group = list(noise(tensors * n, dtype, device).split(n))
    numbers = range(tensors)
    rows = new_rows(tensors, device)

    def one_by_one() -> None:
        for x, number in zip(group, numbers, strict=True):
            accumulate(x, *rows, number)

    medians = paired_medians(
        {
            "group": lambda: accumulate_group(group, numbers, *rows, full=True),
            "group_amax": lambda: accumulate_group(group, numbers, *rows, full=False),
            "one_by_one": one_by_one,
            "norms": lambda: [x.norm() for x in group],
        },
        device,
        seconds,
    )
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": tensors,
        "numel": n,
        **{f"{name}_us": round(taken / tensors, 3) for name, taken in medians.items()},
    }


def line(row: Row, columns: Sequence[str]) -> str:
    """Returns a line of a table, its first columns being the dtype and sizes."""
    first = [f"{row[name]:>9}" for name in ("dtype", "tensors", "numel") if name in row]
    return " ".join([*first, *(f"{row[name]:>{max(len(name), 9)}.2f}" for name in columns)])


def heading(columns: Sequence[str], *first: str) -> str:
    """Returns the line above those of `line`."""
    return " ".join([*(f"{name:>9}" for name in first), *(f"{name:>9}" for name in columns)])


def main() -> None:
    """Prints the tables and writes them with their circumstances as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", help="default: 1K to 64M, on a GPU to 256M")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each line")
    parser.add_argument("--tensors", type=int, default=1000, help="how many make a group")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/kernel-<device>.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        warm_up()
    sizes = args.sizes or (SIZES if args.device == "cpu" else (*SIZES, "256M"))
    dtypes = [getattr(torch, name) for name in args.dtypes]

    columns = [f"{name}_us" for name in PASSES] + [f"{name}_gb_s" for name in ("full", "copy")]
    columns += [f"{a}_per_{b}" for a, b in RATIOS]
    print(heading(columns, "dtype", "numel"))
    rows = []
    for dtype in dtypes:
        for text in sizes:
            rows.append(measure(size(text), dtype, args.device, args.seconds))
            print(line(rows[-1], columns), flush=True)

    columns = [f"{name}_us" for name in GROUP_TASKS]
    print("\nfor each tensor of a group:")
    print(heading(columns, "dtype", "tensors", "numel"))
    groups = []
    for dtype in dtypes:
        for n in (64, 1024, 16384):
            groups.append(measure_group(args.tensors, n, dtype, args.device, args.seconds))
            print(line(groups[-1], columns), flush=True)

    out = args.out or Path(__file__).parent / "results" / f"kernel-{device_name(args.device)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(args.device), "rows": rows, "groups": groups}
    out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
