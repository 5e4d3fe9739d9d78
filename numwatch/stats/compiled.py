"""Whether numba's loops can be had here, when they are compiled, and what is said where not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class WrongCountsError(RuntimeError):
    """Loops count otherwise than the reference; of each kernel that is told."""


@cache
def has_loops() -> bool:
    """Whether numba compiles a loop; where not, `kernels` warns, and torch does the work."""
    try:
        from numwatch.stats import memory  # noqa: F401
        from numwatch.stats.jit import jit

        return bool(jit(succeeding)(1) == 2)  # noqa: PLR2004
    except Exception:  # noqa: BLE001  # numba fails in many ways
        return False


@contextmanager
def told_of_compiling(tell: Callable[[], None] | None) -> Iterator[None]:
    """Calls `tell` once, before numba compiles what its cache on disk does not hold."""
    if tell is None or not has_loops():
        yield
        return
    from numba.core.event import Listener, install_listener

    due = [tell]

    class Telling(Listener):  # type: ignore[misc,unused-ignore]  # untyped
        """Told by numba of every function that it compiles."""

        def on_start(self, event: Any) -> None:
            del event
            while due:
                due.pop()()

        def on_end(self, event: Any) -> None:
            """The last word has been said."""

    with install_listener("numba:compile", Telling()):
        yield


def is_news(error: Exception) -> bool:
    """Whether a failure of numba is to be told: the first of its text, or one of counting."""
    if isinstance(error, WrongCountsError):
        return True
    known = str(error) in _TOLD
    _TOLD.add(str(error))
    return not known


_TOLD: set[str] = set()


def succeeding(n: Any) -> Any:
    """Computes something, for a try whether it can be compiled."""
    return n + 1
