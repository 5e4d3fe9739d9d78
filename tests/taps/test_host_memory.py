"""The rows of a step take memory while they are written to, and none afterwards."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from numwatch.taps.buffers import Buffers

MIB = 1 << 20


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_rows_take_memory_while_they_are_written_to():
    before = resident()
    buffers = Buffers(30_000, torch.device("cpu"))  # 62 MiB
    assert resident() - before < 16 * MIB
    buffers.counts.fill_(1)
    assert resident() - before > 56 * MIB
    sent = buffers.release()
    assert resident() - before < 80 * MIB
    view = sent.numpy()[:10]
    del sent
    assert view.sum() == 10
    del view
    gc.collect()
    assert resident() - before < 24 * MIB


@pytest.mark.parametrize("n", [0, 1, 500, 1_000])
def test_rows_start_empty_whatever_their_number(n):
    buffers = Buffers(n, torch.device("cpu"))
    for _ in range(2):
        assert buffers.counts.shape[0] == n
        assert not buffers.counts.any()
        assert buffers.reals.isinf().sum() == n  # amin
        buffers.counts.fill_(1)
        buffers.release()
