"""Pieces of a table, each read while the one before it is looked at."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa


def read_ahead(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same tables in the same order; one more of them is in memory.

    Reading them and most of looking at them release the interpreter's lock.
    """
    coming = iter(tables)
    with ThreadPoolExecutor(1, thread_name_prefix="numwatch-reader") as reader:
        following = reader.submit(next, coming, None)
        while (table := following.result()) is not None:
            following = reader.submit(next, coming, None)
            yield table
