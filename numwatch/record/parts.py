"""Part files: `<table>/attempt-000-part-00000.parquet`, each written whole or not there."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from numwatch.record.files import check_own, is_own_folder, open_new
from numwatch.record.footer import check_footer
from numwatch.record.part_size import check_size, check_strings
from numwatch.record.schema import ADDED_LATER, TABLES
from numwatch.record.soundness import check_rows

_NAME = re.compile(r"attempt-([0-9]{3,6})-part-([0-9]{5,9})\.parquet")
# Repeated for many rows on end. Histograms and sums hardly repeat; a dictionary enlarges them.
_DICTIONARY = (
    *("attempt", "slot", "numel", "loss_scale", "cast_format", "epoch", "storage"),
    *("sampled", "intended", "dtype", "eps", "eps_stored", "decay", "decay_stored"),
    *("size", "direction"),
)
DAMAGED = (pa.ArrowException, OSError, ValueError)
"""What reading a part that is not whole raises."""


@dataclass(frozen=True)
class Part:
    """A readable part file.

    Attributes:
        table: Name of the table it belongs to.
        first: Its lowest step.
        last: Its highest step.
        rows: How many rows it holds.
    """

    path: Path
    table: str
    attempt: int
    number: int
    first: int
    last: int
    rows: int


def write_part(directory: Path, name: str, attempt: int, number: int, table: pa.Table) -> Path:
    """Writes a part under a temporary name, then renames it, so no reader sees half of one.

    There is no fsync: a killed process loses nothing by that, and a machine that fails may damage
    its last parts, which a reader then skips.

    Raises:
        OSError: The disk is full or not writable; no file remains.
    """
    folder = directory / name
    folder.mkdir(exist_ok=True)
    path = folder / _name(attempt, number)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Only encodings that every Parquet reader knows. Of zstd's levels the first packs counts
        # tighter than the next ones do, in less time.
        with open_new(temporary) as file:
            pq.write_table(
                table,
                file,
                compression="zstd",
                compression_level=1,
                use_dictionary=[column for column in table.column_names if column in _DICTIONARY],
                column_encoding={
                    field.name: "BYTE_STREAM_SPLIT"
                    for field in table.schema
                    if pa.types.is_floating(field.type) and field.name not in _DICTIONARY
                },
                write_page_checksum=True,
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def part_files(directory: Path, name: str) -> list[tuple[Path, int, int]]:
    """Returns path, attempt and number of each part of a table, in the order they were written."""
    folder = directory / name
    if not is_own_folder(folder):
        return []
    matches = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    found = [(path, int(match[1]), int(match[2])) for path, match in matches if match]
    # A part has one name: numbers with more zeros are none of numwatch's.
    own = [part for part in found if part[0].name == _name(*part[1:])]
    return sorted(own, key=lambda part: part[1:])


def _name(attempt: int, number: int) -> str:
    return f"attempt-{attempt:03d}-part-{number:05d}.parquet"


def open_part(path: Path, name: str, attempt: int, number: int) -> Part:
    """Returns what a part's footer says; reads no rows.

    A column that was added later may be missing: an older numwatch did not know it.

    Raises:
        DAMAGED: The file is not whole, or not a part of this table.
    """
    check_own(path)
    check_footer(path)
    with pq.ParquetFile(path) as file:
        schema, found = TABLES[name], file.schema_arrow
        for field in schema:
            missing = field.name not in found.names
            if missing and field.name in ADDED_LATER.get(name, ()):
                continue
            if missing or found.field(field.name).type != field.type:
                raise ValueError(f"column {field.name} is missing or not {field.type}")
        column = found.names.index("step")
        ranges = [
            file.metadata.row_group(i).column(column).statistics
            for i in range(file.metadata.num_row_groups)
        ]
        rows = file.metadata.num_rows
        check_size(file.metadata)
    if not ranges or not all(r is not None and r.has_min_max for r in ranges):
        raise ValueError("it holds no rows, or none with a step")
    first, last = min(r.min for r in ranges), max(r.max for r in ranges)
    return Part(path, name, attempt, number, first, last, rows)


def read_part(part: Part, columns: list[str] | None = None) -> pa.Table:
    """Returns the rows of a part in its table's schema, checked by their checksums.

    Columns that the part lacks are null.

    Raises:
        DAMAGED: The file is not whole, or its rows are none that numwatch writes.
    """
    schema = TABLES[part.table]
    names = schema.names if columns is None else columns
    check_own(part.path)
    with pq.ParquetFile(part.path, page_checksum_verification=True) as file:
        check_size(file.metadata)
        check_strings(part.path, file.metadata)
        table = file.read(columns=names, use_threads=False)
        if not table.column_names:  # then its rows are not counted either
            table = file.read(columns=["step"], use_threads=False)
    for name in names:
        if name not in table.column_names:
            nulls = pa.nulls(table.num_rows, schema.field(name).type)
            table = table.append_column(schema.field(name), nulls)
    table = table.select(names).cast(pa.schema([schema.field(name) for name in names]))
    check_rows(part.table, table)
    return table
