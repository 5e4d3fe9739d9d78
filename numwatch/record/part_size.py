"""How much memory a part would take, told from its footer before any of it is read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LARGEST = 1 << 30
"""Bytes of memory a part's rows may take. numwatch's own take some MiB, or one step's rows."""
_WIDTH = 8
"""Bytes of a number, or of a list's or text's end."""
_STRINGS = "BYTE_ARRAY"


def check_count(metadata: pq.FileMetaData) -> None:
    """Refuses a part whose footer counts more rows than there is room for; looks at no column.

    Arrow makes room for all rows of a column that has no bytes, before it notices.

    Raises:
        ValueError: It does, or counts what can't be counted.
    """
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(metadata.num_rows, *groups, 0) < 0:
        raise ValueError("a number of rows is negative")
    if max(metadata.num_rows, sum(groups)) * metadata.num_columns * _WIDTH > LARGEST:
        raise ValueError(_too_large())


def check_size(metadata: pq.FileMetaData) -> None:
    """Refuses a part whose footer promises more than there is room for.

    Raises:
        ValueError: It does, or counts what can't be counted.
    """
    size = metadata.num_rows * metadata.num_columns * _WIDTH
    for chunk in _chunks(metadata):
        counts = chunk.num_values, chunk.total_uncompressed_size, chunk.total_compressed_size
        if min(counts) < 0:
            raise ValueError("a column's size is negative")
        size += max(chunk.num_values * _WIDTH, chunk.total_uncompressed_size)
    if size > LARGEST or metadata.num_rows < 0:
        raise ValueError(_too_large())


def check_strings(path: Path, metadata: pq.FileMetaData) -> None:
    """Refuses a part that names a few long texts so often that they would not fit into memory.

    Reads the texts, each once, only where the footer leaves that open.

    Raises:
        DAMAGED: It does, or the file is not whole.
    """
    texts = [chunk for chunk in _chunks(metadata) if chunk.physical_type == _STRINGS]
    if sum(chunk.num_values * chunk.total_uncompressed_size for chunk in texts) <= LARGEST:
        return
    names = list(dict.fromkeys(chunk.path_in_schema for chunk in texts))
    with pq.ParquetFile(path, read_dictionary=names) as file:
        table = file.read(columns=names, use_threads=False)
    if sum(map(_length, table.columns)) > LARGEST:
        raise ValueError(f"its texts would take more than {LARGEST >> 20} MiB")


def _too_large() -> str:
    return f"its rows would take more than {LARGEST >> 20} MiB"


def _chunks(metadata: pq.FileMetaData) -> list[pq.ColumnChunkMetaData]:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [group.column(i) for group in groups for i in range(group.num_columns)]


def _length(column: pa.ChunkedArray) -> int:
    """Returns how many bytes a column's texts have."""
    while pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    length = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
        else:
            lengths = pc.binary_length(chunk)
        length += pc.sum(lengths).as_py() or 0
    return length
