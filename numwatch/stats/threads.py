"""A few threads for loops that release the interpreter's lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any


def in_threads(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Runs tasks at the same time, the last one in this thread; returns what they return."""
    *others, own = tasks
    futures = [_pool(os.getpid()).submit(task) for task in others]
    last = own()
    return [*(future.result() for future in futures), last]


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    # By process, for threads don't survive a fork.
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"numwatch-{process}")
