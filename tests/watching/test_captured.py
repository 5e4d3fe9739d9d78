"""Captured graphs, played by a list of passes: what is captured once follows the cadence on replay.

What only a GPU can show, that a real capture takes these passes, is in test_on_gpu.py.
"""

import pytest
import torch
from torch import nn

from numwatch.schedule import Schedule
from numwatch.snapshot import ROLES
from numwatch.stats import accumulate_gated
from numwatch.taps import captured, traced
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

CPU = torch.device("cpu")


@pytest.fixture
def graph(monkeypatch):
    """The passes a capture leaves; nothing is done before they are replayed."""
    passes = []
    monkeypatch.setattr(captured, "accumulate_gated", lambda *pass_: passes.append(pass_))
    monkeypatch.setattr("numwatch.taps.tracing.is_capturing", lambda _tensor: True)
    return passes


def replay(graph):
    for pass_ in graph:
        accumulate_gated(*pass_)


def watch_of(model, schedule):
    watch = Watch(model, Gate(strict=True), schedule)
    watch.attach()
    watch._collector._captured.ready(CPU)
    return watch


def see(model, role, tensor):
    """What compiled code does."""
    (token,) = traced._tokens[model[0]]
    anchor = torch.zeros(1, dtype=torch.uint8)
    torch.ops.numwatch.see(tensor, anchor, token, ROLES.index(role), "", True)


def test_replays_follow_the_cadence(graph):
    model = nn.Sequential(nn.Linear(4, 4))
    watch = watch_of(model, Schedule(4, 2))
    x = torch.tensor([1.0, -3.0, 0.0, torch.inf])
    watch.begin(1)  # nothing is recorded in the step that captures
    see(model, "input", x)
    watch.end()
    assert len(graph) == 1
    for step in range(2, 9):
        watch.begin(step)
        replay(graph)
        watch.end()
    replay(graph)  # between steps, and after the watching
    watch.detach()
    replay(graph)
    rows = {
        s.step: next((r for r in s.rows if r.slot == "0:input"), None) if s.rows else None
        for s in watch.collect(everything=True)
    }
    assert [step for step, row in rows.items() if row] == [2, 4, 6, 8]
    for step in (2, 4, 6, 8):
        assert rows[step].stats.amax == 3.0
        assert rows[step].stats.numel == 4
        assert rows[step].stats.posinfs == 1
        assert sum(rows[step].stats.binades) == (2 if step % 4 == 0 else 0)


def test_memory_that_graphs_write_to_outlives_the_watch(graph):
    model = nn.Sequential(nn.Linear(4, 4))
    watch = watch_of(model, Schedule(1, 0))
    watch.begin(0)
    see(model, "input", torch.ones(4))
    watch.end()
    ((_, counts, _, _, flag),) = graph
    addresses = counts.data_ptr(), flag.data_ptr()
    watch.begin(1)
    watch.end()
    watch.detach()
    assert int(flag) == 0
    assert addresses in {
        (buffers.counts.data_ptr(), kept.data_ptr()) for buffers, kept in captured._kept
    }


def test_a_broken_watch_stops_captured_passes(graph):
    model = nn.Sequential(nn.Linear(4, 4))
    watch = Watch(model, Gate(), Schedule(1, 0))
    watch.attach()
    watch._collector._captured.ready(CPU)
    watch.begin(0)
    see(model, "input", torch.ones(4))
    flag = graph[0][-1]
    watch.gate.switch(watch.gate.mode)
    watch.begin(1)
    with pytest.warns(RuntimeWarning, match="numwatch stopped watching"), watch.gate.watching():
        raise MemoryError("a test's")
    assert int(flag) == 0
