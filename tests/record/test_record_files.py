"""Files of a record are read within bounds."""

import tracemalloc

import pytest

from numwatch.record.files import MIB, read_at_most


def test_a_small_file_takes_little_memory_however_large_it_might_be(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"abc")
    tracemalloc.start()
    assert read_at_most(path, 128 * MIB) == b"abc"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


def test_a_file_above_the_limit_is_refused_and_one_at_it_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    assert len(read_at_most(path, 2 * MIB)) == 2 * MIB
    with pytest.raises(OSError, match="more than 1 MiB"):
        read_at_most(path, MIB)
