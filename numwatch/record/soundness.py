"""Whether the rows of a part are such as numwatch writes; where they are not the part is damaged.

Who reads a record need not ask again: what must be known is, and a histogram fits its binades.
"""

from collections.abc import Iterator
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record.schema import TABLES
from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.layout import AMAX_ONLY, COUNT_COLUMNS, REAL_COLUMNS

_TOGETHER = (
    ("binades", "binade_first", *({*COUNT_COLUMNS, *REAL_COLUMNS} - AMAX_ONLY)),
    ("cast_format", "cast_scale", "cast_flushed", "cast_saturated"),
)
"""Columns of `tensors` that are known in the same rows."""
_COUNT_LIMIT = 1 << 53
"""Counts are added up, and as doubles too."""
_COUNTS = (
    *("numel", "nans", "posinfs", "neginfs", "zeros", "pow2s", "calls", "binades"),
    *("cast_flushed", "cast_saturated", "sampled", "nonzero", "run_zeros", "flushed", "count"),
    *("blocks", "zero_blocks", "below", "tops", "amaxes", "peaks", "elements"),
    *("near", "edge", "deep"),
)
"""Whole columns, and lists of counts."""


def check_rows(name: str, table: pa.Table) -> None:
    """Refuses rows that numwatch never writes; of columns that were not read it can't tell.

    Args:
        name: Of the table.
        table: Rows of it, in any of its columns.

    Raises:
        ValueError: A value is missing or negative, a histogram leaves its range, or a text is none;
            `pa.ArrowInvalid` is one.
    """
    table.validate(full=True)
    for flaw in _flaws(name, table):
        raise ValueError(flaw)


def _flaws(name: str, table: pa.Table) -> Iterator[str]:
    for field in table.schema:
        column = table[field.name]
        if not TABLES[name].field(field.name).nullable and column.null_count:
            yield f"column {field.name} has gaps"
        if pa.types.is_list(field.type):
            yield from _gaps_within(field.name, column)
        if field.name in _COUNTS and not _are_counts(column):
            yield f"column {field.name} holds what is no count"
    if name == "tensors" and "amax" in table.column_names and not _are_finite(table["amax"]):
        yield "column amax holds what is no finite magnitude"
    for names in _TOGETHER if name == "tensors" else ():
        here = [column for column in names if column in table.column_names]
        for one, other in pairwise(here):
            if pc.is_valid(table[one]) != pc.is_valid(table[other]):
                yield f"columns {one} and {other} have different gaps"
    if name == "tensors" and "binades" in table.column_names:
        yield from _histogram_flaws(table)


def _gaps_within(name: str, column: pa.ChunkedArray) -> Iterator[str]:
    values = pc.list_flatten(column)
    if values.null_count:
        yield f"a list of column {name} has gaps"
    if pa.types.is_list(values.type):
        yield from _gaps_within(name, values)


def _histogram_flaws(table: pa.Table) -> Iterator[str]:
    binades = table["binades"]
    if "binade_first" in table.column_names:
        end = pc.add(pc.cast(table["binade_first"], pa.int64()), pc.list_value_length(binades))
        if _least(table["binade_first"]) < BINADE_MIN or -_least(pc.negate(end)) > BINADE_MAX + 1:
            yield "a histogram leaves the range of exponents"


def _are_counts(column: pa.ChunkedArray) -> bool:
    while pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    return _least(column) >= 0 and (pc.max(column).as_py() or 0) < _COUNT_LIMIT


def _are_finite(magnitudes: pa.ChunkedArray) -> bool:
    # The least of numbers passes over NaN.
    return _least(magnitudes) >= 0 and pc.all(pc.is_finite(magnitudes), min_count=0).as_py()


def _least(column: pa.ChunkedArray) -> int:
    """Returns the least number of a column; 0 of none."""
    return pc.min(column).as_py() or 0
