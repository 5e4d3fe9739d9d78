"""Many small records of one kind, kept by column: thousands of objects would take more memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

Entry = TypeVar("Entry")
Column = Sequence[Any] | npt.NDArray[Any]
"""Of an attribute; in an array of floats NaN stands for None."""

_REFERENCE_BYTES, _NAME_BYTES = 8, 64


class Entries(Sequence[Entry], Generic[Entry]):
    """A sequence whose entries are made when they are asked for."""

    def __init__(self, kind: type[Entry], columns: Mapping[str, Column]) -> None:
        """Takes the columns as they are.

        Args:
            kind: Class of the entries, which takes each column's name as an argument.
            columns: All of one length.
        """
        self._kind, self._columns = kind, dict(columns)
        self._length = len(next(iter(self._columns.values()), ()))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> "Entries[Entry]": ...

    def __getitem__(self, index: int | slice) -> "Entry | Entries[Entry]":
        if isinstance(index, slice):
            return Entries(self._kind, {name: c[index] for name, c in self._columns.items()})
        at = range(len(self))[index]
        return next(iter(self[at : at + 1]))

    def __iter__(self) -> Iterator[Entry]:
        names = list(self._columns)
        for values in zip(*map(_values, self._columns.values()), strict=True):
            yield self._kind(**dict(zip(names, values, strict=True)))

    def column(self, name: str) -> Column:
        """Returns a column as it is kept."""
        return self._columns[name]

    @property
    def nbytes(self) -> int:
        """Memory it takes, within a tenth."""
        columns = self._columns.values()
        arrays = sum(c.nbytes for c in columns if isinstance(c, np.ndarray))
        lists = sum(_REFERENCE_BYTES * len(c) for c in columns if not isinstance(c, np.ndarray))
        return arrays + lists + _NAME_BYTES * len(self)


def join_entries(kind: type[Entry], parts: Sequence[Mapping[str, Column]]) -> Sequence[Entry]:
    """Returns the entries of all parts, whose columns have the same names; of none no entries."""
    if not parts:
        return ()
    names = list(parts[0])
    return Entries(kind, {name: _joined([part[name] for part in parts]) for name in names})


def _joined(columns: Sequence[Column]) -> Column:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return [value for column in columns for value in column]


def _values(column: Column) -> Sequence[Any]:
    if not isinstance(column, np.ndarray):
        return column
    if column.dtype.kind == "f":
        return [None if math.isnan(value) else value for value in column.tolist()]
    values: list[Any] = column.tolist()
    return values
