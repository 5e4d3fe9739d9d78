"""On a real GPU: no synchronisation, rows that are right, CUDA graphs that follow the cadence."""

import copy

import pytest
import torch
from torch import nn

from numwatch.schedule import Schedule
from numwatch.stats import tensor_stats, warm_up
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 32)

    def forward(self, x):
        return self.head(self.norm(x + self.body(x)))


def train(model, run, schedule, steps, seen=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    warm_up((torch.float32, torch.bfloat16, torch.float16), "cuda")
    watch = Watch(model, Gate(strict=True), schedule)
    watch.attach([optimizer])
    generator = torch.Generator("cuda").manual_seed(1)
    for step in range(steps):
        x = torch.randn(16, 64, device="cuda", generator=generator)
        torch.cuda.set_sync_debug_mode("error")
        try:
            watch.begin(step)
            with torch.autocast("cuda", torch.bfloat16):
                loss = run(x).float().square().mean()
            loss.backward()
            watch.add_loss(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            watch.end()
            watch.collect()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if seen is not None:
            seen.append(x)
    snapshots = watch.collect(everything=True)
    watch.detach()
    return snapshots


def collected(model, run, schedule, steps, seen=None):
    """All snapshots: `train` drops none where nothing arrives before the end."""
    found = []
    collect = Watch.collect

    def keeping(self, **options):
        found.extend(collect(self, **options))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "collect", keeping)
        train(model, run, schedule, steps, seen)
    return {snapshot.step: snapshot for snapshot in found}


def test_no_step_synchronises_and_rows_are_right():
    model, seen = Net().cuda(), []
    snapshots = collected(model, model, Schedule(4, 1), 9, seen)
    assert sorted(snapshots) == list(range(9))
    for step, x in enumerate(seen):
        rows = {row.slot: row.stats for row in snapshots[step].rows}
        expected = tensor_stats(x.cpu())
        assert rows["body.0:input"].amax == expected.amax
        if step % 4 == 0:
            assert rows["body.0:input"].binades == expected.binades
        assert {"head:grad_output", "body.0:grad_weight", "norm:output"} <= rows.keys()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_follow_the_cadence(mode):
    torch._dynamo.reset()
    model = Net().cuda()
    twin = copy.deepcopy(model)
    eager = collected(twin, twin, Schedule(7, 3), 40)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    ours = collected(model, compiled, Schedule(7, 3), 40)
    for step, snapshot in ours.items():
        recorded = step % 7 == 0 or step % 3 == 0
        assert (snapshot.rows is not None) == recorded
        if not recorded:
            continue
        expected = {row.slot: row.stats for row in eager[step].rows}
        found = {row.slot: row.stats for row in snapshot.rows}
        assert found.keys() == expected.keys(), step
        for slot, stats in found.items():
            assert stats.numel == expected[slot].numel, (step, slot)
        assert found["body.0:input"].amax == expected["body.0:input"].amax
        if step % 7 == 0:
            assert found["body.0:input"].binades == expected["body.0:input"].binades
    torch._dynamo.reset()
