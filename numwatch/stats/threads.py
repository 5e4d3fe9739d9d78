"""A few threads for loops that release the interpreter's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

Item = TypeVar("Item")


def in_threads(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Runs tasks at the same time, the last one in this thread; returns what they return."""
    *others, own = tasks
    futures = [_pool(os.getpid()).submit(task) for task in others]
    last = own()
    return [*(future.result() for future in futures), last]


def share_out(items: Iterable[Item], workers: Sequence[Callable[[Item], None]]) -> None:
    """Gives each item to whichever worker is free, each in a thread, the last one in this.

    A thread that is long in coming, on a busy machine, finds nothing left to do.
    """
    left = deque(items)

    def work(worker: Callable[[Item], None]) -> None:
        while True:
            try:
                item = left.popleft()
            except IndexError:
                return
            worker(item)

    *others, own = workers
    futures = [_pool(os.getpid()).submit(work, worker) for worker in others]
    try:
        work(own)
    finally:
        for future in futures:
            if not future.cancel():
                future.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    # By process, for threads don't survive a fork.
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"numwatch-{process}")
