"""Pieces of a table: each read while the one before it is looked at, or several joined."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

JOINED_ROWS = 1 << 15


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


def joined(tables: Iterable[pa.Table], rows: int = JOINED_ROWS) -> Iterator[pa.Table]:
    """Yields the tables joined to pieces of at least so many rows; what is left is the last one.

    Looking at a small piece takes as long as looking at one of some thousand rows.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.num_rows for one in waiting) >= rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
