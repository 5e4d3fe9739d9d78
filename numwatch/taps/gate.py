"""The one switch all hooks look at, the clock they are charged to, and the guard they fail into."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class Mode(IntEnum):
    """What the step under way records of a tensor."""

    OFF = 0
    AMAX = 1
    FULL = 2


class Gate:
    """State shared by every hook of one watch.

    Attributes:
        mode: What the step under way records; the only thing a hook reads on other steps.
        broken: Whether an internal error has ended the watching.
        strict: Whether such an error is raised instead.
        on_break: Called once when the watching ends by an error.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.mode = Mode.OFF
        self.broken = False
        self.strict = strict
        self.on_break: Callable[[], None] | None = None
        self._spent_ns = 0
        self._depth = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Charges the enclosed work to numwatch, and keeps its errors away from the run."""
        start = time.perf_counter_ns()
        self._depth += 1
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self._break(error)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._spent_ns += time.perf_counter_ns() - start

    def take_seconds(self) -> float:
        """Returns the host seconds charged since the last call."""
        spent, self._spent_ns = self._spent_ns, 0
        return spent * 1e-9

    def _break(self, error: Exception) -> None:
        self.mode = Mode.OFF
        if self.broken:
            return
        self.broken = True
        text = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"numwatch stopped watching, the training goes on ({text}). What was flushed is kept; "
            "strict=True raises such errors instead.",
            RuntimeWarning,
            stacklevel=4,
        )
        if self.on_break is not None:
            self.on_break()
