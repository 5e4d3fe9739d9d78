"""Runs a target on mutated inputs, and keeps those that reach code no other has reached."""

import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from fuzz_base import Target

import numwatch

SECONDS = 10
"""CPU time an input may take."""
MEBIBYTES = 1024
"""Memory that an input may take beyond what was taken before."""
_ROOT = str(Path(numwatch.__file__).parent)


class TookTooLongError(BaseException):
    """No `except Exception` catches it."""


class Coverage:
    """The lines of numwatch that ran inside `with`."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()

    def __enter__(self) -> None:
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_ROOT) else None

    def _line(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        self.seen.add((frame.f_code, frame.f_lineno))
        return self._line


@dataclass
class Tally:
    """What a run of the fuzzer came to."""

    executions: int = 0
    kept: list[bytes] = field(default_factory=list)
    failures: dict[str, tuple[bytes, str]] = field(default_factory=dict)


class Engine:
    """Fuzzes one target."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target, self._rng = target, random.Random(seed)
        self._coverage, self._outcomes = Coverage(), set[str]()
        self._peak = _peak()
        self.tally = Tally()

    def feed(self, inputs: Sequence[bytes]) -> None:
        """Runs inputs that are there already."""
        for data in inputs:
            self._try(data)
        # Without any no input can be made of another.
        self.tally.kept = self.tally.kept or list(inputs)

    def run(self, minutes: float, last: Path) -> None:
        """Makes and runs inputs for so long; the one under way is in the file `last`."""
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            kept = self.tally.kept
            # Of late finds rather than of the first.
            one = kept[int(len(kept) * self._rng.random() ** 0.6)]
            data = self.target.mutate(self._rng, one, self._rng.choice(kept))
            last.write_bytes(data)
            self._try(data)

    def smallest(self) -> list[bytes]:
        """Returns the kept inputs that are needed, small ones first."""
        coverage, outcomes, needed = Coverage(), set[str](), []
        for data in sorted(set(self.tally.kept), key=len):
            before = len(coverage.seen), len(outcomes)
            try:
                with coverage:
                    outcomes.add(self.target.run(data))
            except Exception:  # noqa: BLE001  # told when it was met
                continue
            if (len(coverage.seen), len(outcomes)) != before:
                needed.append(data)
        return needed

    def _check_memory(self) -> None:
        grown = _peak() - self._peak
        if grown > MEBIBYTES:
            self._peak += grown
            raise MemoryError(f"{grown} MiB more")

    def _try(self, data: bytes) -> None:
        self.tally.executions += 1
        before = len(self._coverage.seen), len(self._outcomes)
        try:
            with self._coverage:
                self._outcomes.add(within_limits(self.target, data))
            self._check_memory()
        except (Exception, TookTooLongError) as error:  # noqa: BLE001  # whatever it is, it is told
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = f"{type(error).__name__} {Path(where.filename).name}:{where.lineno}"
            known = self.tally.failures.get(name)
            if known is None or len(data) < len(known[0]):
                told = "".join(traceback.format_exception(error))
                self.tally.failures[name] = (data, told)
                if known is None:
                    print(f"{self.target.name}: {name}", flush=True)  # noqa: T201  # a command's
        if (len(self._coverage.seen), len(self._outcomes)) != before:
            self.tally.kept.append(data)


def within_limits(target: Target, data: bytes) -> str:
    """Runs a target on an input within the limit of time."""

    def stop(*_: object) -> None:
        raise TookTooLongError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return target.run(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def name_of(data: bytes) -> str:
    """What an input's file is called."""
    return sha1(data, usedforsecurity=False).hexdigest()[:12]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
