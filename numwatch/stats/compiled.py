"""Whether numba's loops can be had here, and what is said where not."""

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

        return bool(jit(_succeeding)(1) == 2)  # noqa: PLR2004
    except Exception:  # noqa: BLE001  # numba fails in many ways
        return False


def is_news(error: Exception) -> bool:
    """Whether a failure of numba is to be told: the first of its text, or one of counting."""
    if isinstance(error, WrongCountsError):
        return True
    known = str(error) in _TOLD
    _TOLD.add(str(error))
    return not known


_TOLD: set[str] = set()


def _succeeding(n: Any) -> Any:
    return n + 1
