"""The clinic: is the first cause of runs that fail for a known reason found, and nothing else?

    python benchmarks/clinic.py                       # some ten minutes a seed on one CPU core
    python benchmarks/clinic.py --only fp16-pascals --seeds 1 --keep runs/clinic

Each case of `examples/clinic` trains with several seeds and is diagnosed from its record. Of a
failing run the first finding that is no mere info must be the expected one; a healthy run must
have no warning and no critical finding. `--keep` leaves the records for `numwatch diagnose`.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import clinic

RESULTS = Path(__file__).parent / "results" / "clinic-cpu.json"
TO_BE_RIGHT = 0.95


@dataclass(frozen=True)
class Outcome:
    """What was found in a run of a case.

    Attributes:
        case: Its name.
        seed: The seed.
        first: Rule of the first cause; None where nothing above an info was found.
        severity: Its severity.
        step: Its step.
        slot: Its slot.
        roots: Rules of all causes above an info, in order.
        seconds: What training and diagnosis took.
        right: Whether the first cause is an expected one, or a healthy run has none.
    """

    case: str
    seed: int
    first: str | None
    severity: str | None
    step: int | None
    slot: str | None
    roots: tuple[str, ...]
    seconds: float
    right: bool


def examine(name: str, seed: int, keep: Path | None = None) -> Outcome:
    """Trains a case and diagnoses it.

    Args:
        name: The case's.
        seed: Of weights, data and their order.
        keep: Directory under which the record stays, or None.
    """
    from numwatch.diagnose import diagnose

    torch.set_num_threads(1)
    (case,) = (case for case in clinic.CASES if case.name == name)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) if keep is None else keep / f"{name}-{seed}"
        found = diagnose(clinic.run(case, seed, directory))
    causes = [finding for finding in found if finding.severity != "info"]
    first = causes[0] if causes else None
    rule = first.rule if first else None
    return Outcome(
        case=name,
        seed=seed,
        first=rule,
        severity=first.severity if first else None,
        step=first.step if first else None,
        slot=first.slot if first else None,
        roots=tuple(finding.rule for finding in causes),
        seconds=round(time.perf_counter() - start, 1),
        right=rule is None if case.healthy else rule in case.expected,
    )


def examined(names: list[str], seeds: int, jobs: int, keep: Path | None) -> Iterator[Outcome]:
    """Yields the outcome of each case and seed as it comes, each from a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        todo = [pool.submit(examine, name, seed, keep) for name in names for seed in range(seeds)]
        for done in as_completed(todo):
            yield done.result()


def row(case: clinic.Case, outcomes: list[Outcome]) -> dict[str, Any]:
    """Returns what the result file keeps of a case."""
    by_seed = sorted(outcomes, key=lambda outcome: outcome.seed)
    return {
        "case": case.name,
        "precision": case.precision,
        "ill": case.ill,
        "expected": list(case.expected),
        "found": [outcome.first for outcome in by_seed],
        "steps": [outcome.step for outcome in by_seed],
        "slots": [outcome.slot for outcome in by_seed],
        "causes": [list(outcome.roots) for outcome in by_seed],
        "right": [outcome.right for outcome in by_seed],
        "seconds": [outcome.seconds for outcome in by_seed],
    }


def shown(rows: list[dict[str, Any]]) -> Table:
    """Returns one line for each case."""
    headers = ("case", "expected first cause", "found first cause", "right", "other causes")
    table = Table(*(Column(header, overflow="fold") for header in headers))
    for each in rows:
        others = {rule for causes in each["causes"] for rule in causes[1:]}
        found = dict.fromkeys(rule or "none" for rule in each["found"])
        right, runs = sum(each["right"]), len(each["right"])
        table.add_row(
            each["case"],
            " or ".join(each["expected"]) or "none",
            ", ".join(found),
            f"{right} of {runs}",
            ", ".join(sorted(others)),
            style=None if right == runs else "bold red",
        )
    return table


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the tables of the documentation: failing runs, then healthy ones."""
    failing = [
        f"| `{each['case']}` | {each['precision']} | {each['ill']} | {_rules(each['expected'])} | "
        f"{_rules(dict.fromkeys(each['found']))} | {sum(each['right'])} of {len(each['right'])} |"
        for each in rows
        if each["expected"]
    ]
    healthy = [
        f"| `{each['case']}` | {each['precision']} | {len(each['right'])} | "
        f"{sum(map(len, each['causes']))} |"
        for each in rows
        if not each["expected"]
    ]
    return "\n".join(
        [
            "| failing run | precision | what is wrong | expected | first cause found | right |",
            "| --- | --- | --- | --- | --- | --- |",
            *failing,
            "",
            "| healthy run | precision | runs | warnings and critical findings |",
            "| --- | --- | --- | --- |",
            *healthy,
        ]
    )


def _rules(names: Iterable[str | None]) -> str:
    return " or ".join(f"`{name}`" if name else "none" for name in names)


def main() -> None:
    """Runs the cases, prints a table, and writes a JSON file where all were run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="glob of the names of cases")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--keep", type=Path, help="directory in which the records stay")
    parser.add_argument("--out", type=Path, help="JSON file, default benchmarks/results/…")
    parser.add_argument("--markdown", action="store_true", help="print the result file as tables")
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads((args.out or RESULTS).read_text())["results"]))
        return
    chosen = [case for case in clinic.CASES if fnmatchcase(case.name, args.only or "*")]
    if not chosen:
        names = ", ".join(case.name for case in clinic.CASES)
        raise SystemExit(f"--only {args.only} matches no case; there are {names}")
    outcomes: dict[str, list[Outcome]] = {case.name: [] for case in chosen}
    runs = examined(list(outcomes), args.seeds, args.jobs, args.keep)
    total = len(chosen) * args.seeds
    for outcome in track(runs, "training", total, console=Console(stderr=True)):
        outcomes[outcome.case].append(outcome)
    rows = [row(case, outcomes[case.name]) for case in chosen]
    Console(width=140).print(shown(rows))
    failing = [right for each in rows if each["expected"] for right in each["right"]]
    healthy = [right for each in rows if not each["expected"] for right in each["right"]]
    print(
        f"first cause right in {sum(failing)} of {len(failing)} failing runs, "
        f"no warning in {sum(healthy)} of {len(healthy)} healthy ones"
    )
    if args.only is None or args.out:
        out = args.out or RESULTS
        torch.set_num_threads(1)
        report = {"machine": machine("cpu"), "seeds": args.seeds, "results": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if not all(healthy) or sum(failing) < TO_BE_RIGHT * len(failing):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
