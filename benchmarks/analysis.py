"""How long the commands that read a record take on a long one, and how much memory.

    python benchmarks/analysis.py                       # report: 1,000 steps of 1,000 slots; the
                                                        # others: 10,000
    python benchmarks/analysis.py --full-every 1        # every row whole
    python benchmarks/analysis.py --steps 1000          # a tenth of it

Each command runs as a user runs it, in a process of its own, from its start to its end, the imports
included; how long importing takes stands beside it. The best of `--rounds` counts, for a machine
with other work on it only ever adds. The records are `long_record.py`'s: every slot at every step,
each fifth of them whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from long_record import slots_of, write

RESULTS = Path(__file__).parent / "results" / "analysis-cpu.json"
MIB, GB = 2**20, 10**9
REPORTED = 10
"""A report reads one step of so many."""


@dataclass(frozen=True)
class Command:
    """A command line, and what it may take in seconds and bytes."""

    name: str
    words: tuple[str, ...]
    long: bool
    seconds: float
    bytes: int = 2 * GB


COMMANDS = (
    Command("report", ("report",), long=False, seconds=2.0),
    Command("diagnose", ("diagnose", "--fail-on", "never"), long=True, seconds=30.0),
    Command("recommend amp", ("recommend", "--target", "amp"), long=True, seconds=30.0),
    *(
        Command(f"recommend {name}", ("recommend", "--target", name), long=True, seconds=30.0)
        for name in ("fp8", "mxfp8", "nvfp4")
    ),
)
IMPORTS = {
    "command": "import numwatch.cli.app; from numwatch import open_run; import numwatch.report",
    "numwatch": "import numwatch",
    "torch": "import torch",
}
"""What a command imports before it reads; the package alone; and torch, which no command needs."""


@dataclass(frozen=True)
class Taken:
    """Wall time in seconds, and the peak of resident memory in bytes, of a process."""

    seconds: float
    peak: int


def taken(words: list[str]) -> Taken:
    """Runs Python with these arguments to its end."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return Taken(seconds, usage.ru_maxrss * 1024)  # Linux counts in KiB


def best(words: list[str], rounds: int) -> Taken:
    """Returns the least time and the largest peak of some rounds."""
    found = [taken(words) for _ in range(rounds)]
    return Taken(min(one.seconds for one in found), max(one.peak for one in found))


def table(lines: list[dict[str, object]], imports: dict[str, float]) -> list[str]:
    """Returns the figures as a Markdown table."""
    head = ("command", "rows", "record MiB", "s", "of them imports", "peak MB", "allowed")
    rows = [
        (
            line["name"],
            f"{line['rows']:,}",
            f"{line['record_mib']:.0f}",
            f"{line['seconds']:.1f}",
            f"{imports['command']:.1f}",
            f"{line['peak_mb']:.0f}",
            f"{line['limit_seconds']:.0f} s, {line['limit_mb']:.0f} MB",
        )
        for line in lines
    ]
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def main() -> None:
    """Writes both records, runs the commands, prints and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="of which report reads a tenth")
    parser.add_argument("--slots", type=int, default=1_000)
    parser.add_argument("--full-every", type=int, default=5, help="1: every row whole")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        records = {}
        for long in (False, True):
            steps = args.steps if long else args.steps // REPORTED
            directory = Path(temporary) / str(steps)
            rows = write(directory, slots_of(args.slots), steps, args.full_every)
            size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
            records[long] = directory, rows, size
        imports = {name: best(["-c", code], args.rounds).seconds for name, code in IMPORTS.items()}
        for command in COMMANDS:
            directory, rows, size = records[command.long]
            words = ["-m", "numwatch.cli", *command.words, str(directory)]
            found = best(words, args.rounds)
            lines.append(
                {
                    "name": command.name,
                    "rows": rows,
                    "record_mib": round(size / MIB, 1),
                    "seconds": round(found.seconds, 2),
                    "peak_mb": round(found.peak / 1e6),
                    "limit_seconds": command.seconds,
                    "limit_mb": command.bytes / 1e6,
                }
            )
            print(f"{command.name}: {found.seconds:.1f} s, {found.peak / 1e6:.0f} MB")
    print("\n".join(table(lines, imports)))
    # It imports torch. Of a process that was started by a large one Linux tells a large peak.
    from machine import machine

    figures = {
        "machine": machine("cpu"),
        "steps": args.steps,
        "slots": args.slots,
        "full_every": args.full_every,
        "rounds": args.rounds,
        "import_seconds": {name: round(seconds, 2) for name, seconds in imports.items()},
        "commands": lines,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
