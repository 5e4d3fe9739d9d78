"""Fuzzes numwatch's readers: `python tests/fuzz plan --minutes 10`.

What is found goes to `--out`; the inputs worth keeping are added to `tests/fuzz/corpora`, which
`test_corpora.py` replays. The only outcomes allowed are a result and a `NumwatchError`, within
limits of time and memory.
"""

import argparse
import logging
import os
import sys
from itertools import accumulate
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz_engine import Engine, name_of
from fuzz_targets import TARGETS, made

CORPORA = Path(__file__).parent / "corpora"
LARGEST = 100_000
"""Bytes a corpus may have, the smallest inputs first: it is kept in a repository."""


def main() -> int:
    """Fuzzes one target or all, one after another; returns how many kinds of failure it found."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-found"))
    parser.add_argument("--keep", action="store_true", help="write the corpora")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = 0
    for name in given.targets:
        found += fuzz(name, given.minutes, given.seed, given.out / name, keep=given.keep)
    return min(found, 1)


def fitting(inputs: list[bytes]) -> list[bytes]:
    """Returns as many of them as fit, from the first on."""
    sizes = accumulate(map(len, inputs))
    return [data for data, size in zip(inputs, sizes, strict=True) if size <= LARGEST]


def fuzz(name: str, minutes: float, seed: int, out: Path, *, keep: bool) -> int:
    """Fuzzes one target."""
    out.mkdir(parents=True, exist_ok=True)
    target, corpus = made(name), CORPORA / name
    engine = Engine(target, seed)
    known = sorted(corpus.iterdir()) if corpus.is_dir() else []
    engine.feed([*target.seeds(), *(path.read_bytes() for path in known)])
    engine.run(minutes, out / "last")
    for data, told in engine.tally.failures.values():
        (out / name_of(data)).write_bytes(data)
        (out / f"{name_of(data)}.txt").write_text(told)
    kept = fitting(engine.smallest()) if keep else []
    if keep:
        corpus.mkdir(parents=True, exist_ok=True)
        for path in known:
            if not path.name.startswith("found-"):
                path.unlink()
        for data in kept:
            (corpus / name_of(data)).write_bytes(data)
    tally = engine.tally
    print(  # noqa: T201  # a command's
        f"{name}: {tally.executions} executions in {minutes:g} min, {len(tally.failures)} kinds of "
        f"failure, {len(tally.kept)} inputs of which {len(kept)} are kept",
        flush=True,
    )
    return len(tally.failures)


if __name__ == "__main__":
    sys.exit(main())
