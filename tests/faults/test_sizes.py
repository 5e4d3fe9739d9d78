"""Very many slots, and more elements than 32 bits count."""

import os

import pytest
import torch
from faults_harness import assert_same, steps_of, train
from torch import nn

import numwatch
from numwatch.report import summarize


def wide(layers=1250):
    """10,000 slots: eight of each layer, its parameters' own among them."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 4)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))

        def forward(self, x):
            x = self.first(x)
            return sum(layer(x) for layer in self.layers)

        def __getitem__(self, _):
            return self.first

    return Wide


@pytest.mark.slow
def test_ten_thousand_slots(tmp_path):
    bare = train(make=wide(), steps=2)
    found = train(tmp_path, make=wide(), steps=2, audit=False)
    assert found.error is None
    assert found.warned == []
    assert_same(found, bare)
    run = numwatch.open_run(tmp_path)
    assert steps_of(tmp_path) == ([0, 1], [])
    slots = set(run.tensors()["slot"].to_pylist())
    assert len(slots) > 10_000
    assert summarize(run).slots
    numwatch.diagnose(run)


N = 2**31 + 1


def free_gib():
    if not hasattr(os, "sysconf"):
        return 0.0
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


@pytest.mark.slow
@pytest.mark.skipif(free_gib() < 4, reason="2 GiB for the tensor, and as much again")
def test_more_elements_than_32_bits_count():
    x = torch.zeros(N, dtype=torch.uint8).view(torch.float8_e4m3fn)
    x[-1] = 448.0
    x[0], x[2**31 - 1] = -2.0, torch.nan
    stats = numwatch.tensor_stats(x)
    assert (stats.numel, stats.zeros, stats.nans) == (N, N - 3, 1)
    assert (stats.amax, stats.amin, stats.sum) == (448.0, 2.0, 446.0)
    assert sum(stats.binades) == 2
