"""How much memory something takes at its peak, whatever the process has taken before."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20
_POOLS: list[pa.MemoryPool] = []
"""They must outlive what was taken from them."""


def peak_of(work: Callable[[], object]) -> int:
    """Returns by how many bytes the process grew at most while `work` ran; skips where unknown."""
    if not _is_reset():
        pytest.skip("this system does not let a process reset its peak memory")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


@contextmanager
def at_most_mib(limit: int) -> Iterator[None]:
    """Fails where the process grows by more, on a system that tells."""
    known = _is_reset()
    before = _status("VmRSS") if known else 0
    yield
    if known:
        _check(_status("VmHWM") - before, limit)


@contextmanager
def arrow_at_most_mib(limit: int) -> Iterator[None]:
    """Fails where Arrow takes more, which keeps what it has once taken from the system."""
    usual = pa.default_memory_pool()
    own = pa.proxy_memory_pool(usual)
    _POOLS.append(own)
    pa.set_memory_pool(own)
    try:
        yield
    finally:
        pa.set_memory_pool(usual)
    _check(own.max_memory(), limit)


def _check(taken: int, limit: int) -> None:
    assert taken < limit * MIB, f"{taken / MIB:.0f} MiB were taken, not under {limit}"


def _is_reset() -> bool:
    """Whether the peak could be set to what there is now."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1])
