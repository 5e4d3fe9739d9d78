"""Whether a part's footer can be looked into: some damage makes Arrow end the process."""

import io
from pathlib import Path

import pyarrow.parquet as pq

from numwatch.record.part_size import check_count


class _FooterAlone(io.FileIO):
    """A file that ends, once shut, where it is asked for more."""

    shut = False
    asked = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked = self.shut
        return b"" if self.shut else super().read(size)


def check_footer(path: Path) -> None:
    """Refuses a part one of whose columns has a description that contradicts itself.

    Asked for one by `RowGroupMetaData.column`, Arrow lets its C++ exception abort the process. A
    read looks at all of them too, before it asks for the first row, and hands the exception on. Of
    a type that is not its column's, `statistics` alone lets it know, in the same way.

    Raises:
        DAMAGED: It does, counts more rows than there is room for, or the file is not whole.
    """
    with _FooterAlone(path) as file, pq.ParquetFile(file, pre_buffer=True) as part:
        check_count(part.metadata)
        file.shut = True
        try:
            part.read(use_threads=False)
        except OSError:
            if not file.asked:
                raise
        _check_types(part.metadata)


def _check_types(metadata: pq.FileMetaData) -> None:
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if group.num_columns != metadata.num_columns:
            raise ValueError(
                f"a group has {group.num_columns} columns, the schema {metadata.num_columns}"
            )
        for j in range(group.num_columns):
            said, meant = group.column(j).physical_type, metadata.schema.column(j).physical_type
            if said != meant:
                raise ValueError(f"column {j} is {said} where the schema has {meant}")
