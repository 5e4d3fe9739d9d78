"""How long a replay of a long run takes, and how much memory.

    python benchmarks/replay.py                          # 10,000 steps of 1,000 operands
    python benchmarks/replay.py --steps 1000 --slots 90

Writes the record of `long_record.py`, its slots all operands of GEMMs. Another process then
reads it once and replays a few recipes, so that its peak of memory is its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from long_record import arguments, info, write
from machine import machine
from rich.progress import Progress

from numwatch.snapshot import SlotInfo

RESULTS = Path(__file__).parent / "results" / "replay-cpu.json"
SECONDS, GIB = 60.0, 2.0
"""What reading it and the first recipe may take."""
RECIPES = (
    "delayed:history=1024",
    "delayed:history=16,margin=1",
    "current",
    "grad-scaler:init_scale=65536",
    "mx:rule=rceil",
)


def operands(count: int) -> list[SlotInfo]:
    """Returns so many slots: of Linears in BF16, three to a layer."""
    infos = []
    for order in range(-(-count // 3)):
        for role in ("input", "weight", "grad_output"):
            layer = f"blocks.{order}.fc"
            infos.append(info(layer, role, "Linear", "bfloat16", "bf16", order))
    return infos[:count]


def measure(directory: Path) -> dict[str, object]:
    """Replays a record; returns seconds by recipe and the process's peak of memory in GiB."""
    from numwatch.recipes import parse_any_recipe
    from numwatch.record import open_run
    from numwatch.replay import Replayer

    start = time.perf_counter()
    run = open_run(directory)
    seconds = {}
    with Progress() as progress:
        task = progress.add_task("replaying", total=run.rows("tensors"))
        replayed = Replayer(run, progress=lambda rows: progress.advance(task, rows))
        for recipe in RECIPES:
            found = replayed(parse_any_recipe(recipe))
            for slot in found.slots[:1]:
                print(recipe, slot.slot, slot.steps_saturating, file=sys.stderr)
            del found
            seconds[recipe] = round(time.perf_counter() - start, 2)
            start = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    return {"seconds": seconds, "peak_gib": round(peak, 3)}


def main() -> None:
    """Writes, measures in another process, prints and keeps the figures."""
    args = arguments(__doc__.splitlines()[0], RESULTS)
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.keep or Path(temporary) / "record"
        rows = write(directory, operands(args.slots), args.steps, args.full_every)
        command = [sys.executable, __file__, "--measure", str(directory)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = {
        "machine": machine("cpu"),
        "steps": args.steps,
        "slots": args.slots,
        "full_every": args.full_every,
        "rows": rows,
        **json.loads(done.stdout.splitlines()[-1]),
        "limit_seconds": SECONDS,
        "limit_gib": GIB,
    }
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if max(figures["seconds"].values()) > SECONDS or figures["peak_gib"] > GIB:
        sys.exit("slower or larger than it may be")


if __name__ == "__main__":
    main()
