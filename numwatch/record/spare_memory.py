"""Memory that Arrow keeps for tables to come."""

import pyarrow as pa


def give_back() -> None:
    """Gives it back to the system, from whatever thread: the next table is long in coming."""
    pa.default_memory_pool().release_unused()
