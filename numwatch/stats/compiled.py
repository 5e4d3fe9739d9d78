"""Whether numba's loops can be had here."""

from functools import cache


@cache
def has_loops() -> bool:
    """Whether the CPU loops can be imported; else torch does the work, and `kernels` warns."""
    try:
        from numwatch.stats import memory  # noqa: F401
    except Exception:  # noqa: BLE001  # numba fails in many ways
        return False
    return True
