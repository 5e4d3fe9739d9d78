"""What a process holds: memory, open files, threads, objects."""

import gc
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
HELD = ("rss_mib", "files", "threads", "objects")


def rss_mib() -> float:
    """Returns the resident memory of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def reset_peak() -> None:
    """Has `peak_mib` forget what came before, where the system allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Returns the most resident memory this process had since then in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def held() -> dict[str, float]:
    """Returns what this process holds now, after a collection of garbage.

    Resident memory in MiB, open file descriptors, Python threads, and objects that Python's
    collector tracks. Of files and threads the least of a few looks is taken: a writer may be at it.
    """
    gc.collect()
    looks = []
    for _ in range(5):
        looks.append((sum(1 for _ in Path("/proc/self/fd").iterdir()), threading.active_count()))
        time.sleep(0.01)
    files, threads = (min(values) for values in zip(*looks, strict=True))
    return {
        "rss_mib": round(rss_mib(), 2),
        "files": files,
        "threads": threads,
        "objects": len(gc.get_objects()),
    }
