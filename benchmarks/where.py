"""Where the time of watching goes, by looking at what the training's threads are doing.

    python benchmarks/where.py                       # the GPT in BF16
    python benchmarks/where.py --model cnn --precision fp32 --threads 1

Each millisecond another thread looks at their stacks. A look belongs to the innermost file of
numwatch in a stack, and where there is none to the run itself; what a file of numwatch calls in
torch or in a kernel is its own. It says nothing of what watching costs beside its own code, such as
colder caches: `overhead.py` does.
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from machine import device_name, machine
from monitors import AMAX, DEFAULT, FULL, TENSORS, VARIANTS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from trainee import AUTOCAST, MODELS, SIZES, Cell, Trainee, kernels
from typing_extensions import Self

import numwatch

RESULTS = Path(__file__).parent / "results"
ROOT = f"{Path(numwatch.__file__).parent}/"
INTERVAL = 1e-3
RUN, WRITER = "the run itself", "off the training thread"
_AREAS = (
    ("stats/", "pass over tensors"),
    ("record/", "record"),
    ("taps/delivery", "copy to the host"),
    ("taps/parcel", "copy to the host"),
    ("taps/tape", "copy to the host"),
)
_WAITING = ("threading.py", "queue.py")


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yields a stack's frames from the innermost outwards."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def place(frame: FrameType) -> tuple[str, str] | None:
    """Returns the area and the file that a stack is in; None where numwatch is not in it."""
    names = [(f.f_code.co_filename, f.f_code.co_name) for f in stack(frame)]
    file = next((name.removeprefix(ROOT) for name, _ in names if name.startswith(ROOT)), None)
    if file is None:
        return None
    for prefix, area in _AREAS:
        if file.startswith(prefix):
            return area, file
    if any(function == "_call_impl" for _, function in names):
        return "hooks in forward", file
    if any(name.endswith("torch/autograd/graph.py") for name, _ in names):
        return "hooks in backward", file
    return "around steps", file


class Sampler:
    """Looks at the stacks of a training while it is open.

    Attributes:
        areas: Looks by area.
        files: Looks by file of numwatch.
    """

    def __init__(self) -> None:
        self.areas: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._main = threading.get_ident()

    def __enter__(self) -> Self:
        # A look waits for the interpreter's lock, which Python's own code gives away no sooner.
        self._kept = sys.getswitchinterval()
        sys.setswitchinterval(INTERVAL / 100)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        sys.setswitchinterval(self._kept)

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            python = {thread.ident for thread in threading.enumerate()} - {self._main}
            found = None
            for ident, frame in sys._current_frames().items():  # noqa: SLF001  # documented
                if ident not in python:  # the training's own, or autograd's of a device
                    found = found or place(frame)
                elif ident != threading.get_ident() and not _waits(frame) and place(frame):
                    self.areas[WRITER] += 1
            area, file = found or (RUN, None)
            self.areas[area] += 1
            if file is not None:
                self.files[file] += 1


def _waits(frame: FrameType) -> bool:
    return frame.f_code.co_filename.endswith(_WAITING)


def sample(cell: Cell, name: str, seconds: float) -> dict[str, Any]:
    """Returns the shares of a variant's time, of the training thread's and its device's."""
    trainee = Trainee(cell)
    with VARIANTS[name].attach(trainee) as after:
        for step in range(13):
            after(trainee.step(trainee.batch(step)))
        steps, end = 0, time.perf_counter() + seconds
        with Sampler() as sampler:
            while time.perf_counter() < end:
                after(trainee.step(trainee.batch(steps)))
                steps += 1
    looks = sum(count for area, count in sampler.areas.items() if area != WRITER)
    return {
        "name": name,
        "steps": steps,
        "looks": looks,
        "areas": {area: round(n / looks, 4) for area, n in sampler.areas.most_common()},
        "files": {file: round(n / looks, 4) for file, n in sampler.files.most_common(8)},
    }


def main() -> None:
    """Samples, prints the shares and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", choices=MODELS, default="gpt")
    parser.add_argument("--precision", choices=list(AUTOCAST), default="bf16")
    parser.add_argument("--device", default=device)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="for each variant")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = args.size or ("small" if args.device == "cpu" else "124m")
    cell = Cell(args.model, args.precision, device=args.device, size=size)
    names = (DEFAULT, FULL, TENSORS, AMAX)
    with kernels(cell):
        looks = track(names, "looking", console=Console(stderr=True), transient=True)
        rows = [sample(cell, name, args.seconds) for name in looks]
    for row in rows:
        table = Table("where", "share of time", title=f"{cell.name}: {row['name']}")
        for name, share in (*row["areas"].items(), *row["files"].items()):
            table.add_row(name, f"{100 * share:.1f} %")
        Console(width=100).print(table)
    report = {
        "machine": machine(args.device),
        "model": cell.model,
        "precision": cell.precision,
        "size": cell.size,
        "results": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out / f"where-{cell.name}-{device_name(args.device)}.json"
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
