"""What a session has to say of its own watching, each once: a warning, an event of the record."""

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from numwatch.ranks import Reducer
from numwatch.report.terminal import print_line

Event = Callable[..., None]
"""Writes an event of (kind, step, **details) where a record is kept."""

_COMPILING = "numwatch: compiles its kernels, as the first run in an environment does"
_ALONE = (
    "numwatch records rank 0 alone from step {step} on: {why}. Every rank must watch, and end the "
    "same steps and epochs."
)
_UNKEPT = (
    "numwatch keeps nothing of this run: rank 0, which keeps the record of all, does not watch. "
    "Watch on every rank."
)
_BLIND = (
    "numwatch sees no activations: the model's graph was compiled before numwatch was put on it, "
    "and compiled graphs call no later hooks. Watch it before its first forward in training, or "
    "call torch.compiler.reset() before the watching starts."
)
_SESSION = 3
"""Frames from a warning up to the session."""


class Notices:
    """Says each thing once.

    Args:
        event: Writes to the record.
        first: Whether this is the rank that keeps it.
        console: Where a person reads, None for nowhere.
    """

    def __init__(self, event: Event, console: Console | None, *, first: bool) -> None:
        self._event, self._console, self._first = event, console, first
        self._said: set[str] = set()

    def compiling(self) -> None:
        """Kernels are being compiled, which takes more than a moment."""
        if self._console is not None and self._first and self._is_new("compiling"):
            with suppress(OSError, ValueError):  # a terminal that is gone is no compiler's fault
                print_line(Text(_COMPILING), self._console)

    def unaudited(self, step: int, why: str) -> None:
        """No operations are noted."""
        if self._is_new("unaudited"):
            self._event("audit", step, note=why)

    def unseen(self, step: int, *unseen: str) -> None:
        """The record does not hold something of this rank."""
        for what in filter(self._is_new, unseen):
            self._event("unseen", step, note=what)

    def apart(self, step: int, what: str) -> None:
        """The joined steps do not hold something of other ranks."""
        if self._is_new("apart"):
            self._event("unseen", step, note=what)

    def alone(self, reducer: Reducer) -> bool:
        """Other ranks' numbers are missing from a step on: returns whether they are."""
        why, step = reducer.alone, reducer.alone_since
        if why is None or step is None:
            return False
        if self._is_new("alone"):
            self._event("alone", step, note=why)
            if self._first:
                _warn(_ALONE.format(step=step, why=why), RuntimeWarning)
            elif reducer.unkept:
                _warn(_UNKEPT, RuntimeWarning)
        return True

    def blind(self) -> None:
        """Compiled code calls no hooks; without any the modules are just not called, or not yet."""
        if self._is_new("blind") and "torch._dynamo" in sys.modules:
            self._event(
                "unseen", 0, note="activations: the model was compiled before it was watched"
            )
            if self._first:
                _warn(_BLIND, UserWarning)

    def _is_new(self, what: str) -> bool:
        new = what not in self._said
        self._said.add(what)
        return new


def _warn(text: str, category: type[Warning]) -> None:
    warnings.warn(text, category, stacklevel=_SESSION)
