"""How the CPU loops are compiled."""

from typing import Any

from numba import njit


def jit(function: Any, **options: Any) -> Any:
    """Compiles for nopython mode, without the interpreter's lock, keeping the result on disk.

    What is named with an underscore is called by other loops alone: it gets no way in from Python,
    which would take a tenth of the compiling.
    """
    inner = function.__name__.startswith("_")
    options.update(nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=inner)
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # No folder can be written to: compile in every process.
        return njit(**options)(function)


def jit_sum(function: Any) -> Any:
    """Compiles likewise, free to add in any order, without which no sum could be vectorised."""
    return jit(function, fastmath={"reassoc", "nsz"})
