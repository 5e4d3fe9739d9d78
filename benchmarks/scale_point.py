"""One point of `scale.py`: trains one model watched, in this process, and prints what it took.

Kinds of steps alternate in a fixed round of six: full, off, off, amax, off, off.
"""

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

import torch
from counting import peak_mib, reset_peak, rss_mib
from torch import Tensor, nn

import numwatch
from numwatch.loop import LoopWatch
from numwatch.stats import warm_up

ROUND = ("full", "off", "off", "amax", "off", "off")
EVERY, AMAX_EVERY = 6, 3
ROWS = 7
"""Of a Linear without bias in a full step: six roles and its weight's update."""
LARGEST = 4
"""Linears of the model whose tensors grow."""


class Training:
    """A stack of equal Linears without bias, SGD, and one batch."""

    def __init__(self, layers: int, width: int, batch: int, device: str) -> None:
        torch.manual_seed(0)
        linears = (nn.Linear(width, width, bias=False) for _ in range(layers))
        self.model = nn.Sequential(*linears).to(device)
        for weight in self.model.parameters():
            nn.init.orthogonal_(weight)  # thousands of layers deep the signal keeps its size
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self._x = torch.randn(batch, width, device=device)

    def step(self) -> Tensor:
        """Trains one step and returns the loss."""
        loss = self.model(self._x).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def seconds(training: Training, watch: LoopWatch | None) -> float:
    """Returns how long a step takes, with what watches it."""
    start = time.perf_counter()
    loss = training.step()
    if watch is not None:
        watch.step(loss=loss)
    if loss.is_cuda:
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    training.optimizer.zero_grad()
    return taken


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, help="rows of a full step, seven to a 16 x 16 Linear")
    parser.add_argument("--width", type=int, help="four Linears so wide, and a batch as large")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, help="steps altogether, in place of rounds")
    parser.add_argument("--trace", action="store_true", help="Python's memory instead of times")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layers = LARGEST if args.width else max(1, round(args.slots / ROWS))
    shape = (layers, args.width or 16, args.width or 16)
    bare, watched = (Training(*shape, args.device) for _ in range(2))
    if args.device == "cpu":
        warm_up((torch.float32,))
    with tempfile.TemporaryDirectory() as directory:
        run_once(Training(1, 16, 16, args.device), Path(directory) / "warm")  # loads what is lazy
        for _ in range(3):
            seconds(bare, None), seconds(watched, None)
        reset_peak()
        resident = rss_mib()
        if args.trace:
            tracemalloc.start()
        steps = args.steps or EVERY * (args.rounds + 1)
        ratios: dict[str, list[float]] = {kind: [] for kind in ROUND}
        with open_watch(watched, Path(directory) / "run") as watch:
            for step in range(steps):
                if args.trace:
                    seconds(watched, watch)
                    continue
                turns = [(bare, None), (watched, watch)][:: 1 if step // EVERY % 2 else -1]
                times = {who: seconds(who, on) for who, on in turns}
                if step >= EVERY:
                    ratios[ROUND[step % EVERY]].append(times[watched] / times[bare])
        traced = tracemalloc.get_traced_memory()[1] / 2**20
        grown, most = rss_mib() - resident, peak_mib() - resident
        found = {"python_mib": round(traced, 2)}
        found = found if args.trace else of_record(Path(directory) / "run")
    if not args.trace:
        found |= {
            f"{kind}_ratio": round(statistics.median(r), 3) for kind, r in ratios.items() if r
        }
        found["rss_mib"] = round(grown, 2)
        found["peak_mib"] = round(most, 2)
    found |= {"elements": args.width**2} if args.width else {}
    found |= {"steps": args.steps} if args.steps else {}
    print(json.dumps(found))


def open_watch(training: Training, directory: Path) -> LoopWatch:
    """Returns numwatch on a training; a round of six has each kind of step."""
    return numwatch.watch(
        training.model,
        training.optimizer,
        dir=directory,
        every_n_steps=EVERY,
        amax_every_n_steps=AMAX_EVERY,
        block_every_n_steps=0,
        audit=False,
        summary=False,
        strict=True,
    )


def run_once(training: Training, directory: Path) -> None:
    """Trains a round watched."""
    with open_watch(training, directory) as watch:
        for _ in range(EVERY):
            seconds(training, watch)


def of_record(directory: Path) -> dict[str, float]:
    """Returns milliseconds of each kind of step after the first round, and the record's size.

    A step that follows a recorded one carries the work of taking its rows in; it is numwatch's
    work of the recorded one and is counted there.
    """
    run = numwatch.open_run(directory)
    taken = run.steps().column("numwatch_seconds").to_pylist()
    kinds: dict[str, list[float]] = {kind: [] for kind in ROUND}
    for start in range(EVERY, len(taken) - EVERY + 1, EVERY):
        times = taken[start : start + EVERY]
        kinds["full"].append(times[0] + times[1])
        kinds["amax"].append(times[3] + times[4])
        kinds["off"].append(min(times[2], times[5]))
    rows = run.tensors()
    recorded = rows.num_rows
    slots = len(set(rows.column("slot").to_pylist()))
    size = sum(
        part.stat().st_size for part in directory.rglob("*.parquet") if "tensors" in str(part)
    )
    whole = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    memory = [event["bytes"] for event in run.events() if event["kind"] == "memory"]
    return {
        "slots": slots,
        **{f"{kind}_ms": round(1e3 * statistics.median(t), 4) for kind, t in kinds.items()},
        "device_mib": round(max(memory, default=0) / 2**20, 3),
        "bytes_per_row": round(size / recorded, 1),
        "record_bytes_per_row": round(whole / recorded, 1),
    }


if __name__ == "__main__":
    main()
