"""torchao's FP8, compiled: rows and casts are those of the eager model."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

torchao = pytest.importorskip("torchao.float8")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _without_onednn_and_compiled_afresh(monkeypatch):
    # Where a CPU has AMX, oneDNN computes FP8 in its reference kernel.
    with torch.backends.mkldnn.flags(enabled=False):
        torch._dynamo.reset()
        counters.clear()
        yield
    torch._dynamo.reset()


def watched(model, run):
    watch = Watch(model, Gate(strict=True), Schedule(1, 0))
    watch.attach()
    snapshots = []
    for step in range(2):
        torch.manual_seed(step)
        watch.begin(step)
        run(torch.randn(16, 32, dtype=torch.bfloat16)).float().square().mean().backward()
        model.zero_grad()
        watch.end()
        snapshots += watch.collect(everything=True)
    watch.detach()
    return [{row.slot: row for row in snapshot.rows} for snapshot in snapshots]


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_rows_and_casts_are_those_of_the_eager_model(recipe):
    config = torchao.Float8LinearConfig.from_recipe_name(recipe)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).bfloat16()
    model = torchao.convert_to_float8_training(model, config=config)
    twin = copy.deepcopy(model)
    expected = watched(twin, twin)
    found = watched(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    for theirs, ours in zip(expected, found, strict=True):
        assert theirs.keys() == ours.keys()
        for slot, row in theirs.items():
            assert ours[slot].stats.binades == row.stats.binades, slot
            assert ours[slot].stats.amax == row.stats.amax, slot
            assert repr(ours[slot].cast) == repr(row.cast), slot  # rowwise scales are NaN
        assert theirs["0:input"].cast is not None
