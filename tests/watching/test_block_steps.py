"""Block counts of GEMM operands: on which steps, of which tensors, and at no cost to the run."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from test_watch import Net, independent_rows, train, watch_of
from torch import nn

from numwatch import NumwatchError, tensor_stats
from numwatch.schedule import Schedule
from numwatch.settings import Settings
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

EVERY_STEP = Schedule(1, 0, block_every_n_steps=1)


def block_rows(snapshot):
    return {(row.slot, row.histogram.size, row.histogram.direction): row for row in snapshot.blocks}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
def test_training_with_block_steps_is_bitwise_the_bare_one(dtype, use_reentrant):
    def run(watched):
        torch.manual_seed(0)
        model = Net(use_reentrant)
        scaler = torch.amp.GradScaler("cpu") if dtype is torch.float16 else None
        watch = Watch(model, Gate(strict=True), EVERY_STEP) if watched else None
        trained = train(model, watch=watch, scaler=scaler, dtype=dtype)
        counted = [s.blocks for s in watch.collect(everything=True)] if watch else []
        return *trained, counted

    bare_losses, bare, _ = run(watched=False)
    losses, weights, counted = run(watched=True)
    assert torch.equal(losses, bare_losses)
    assert all(torch.equal(weights[name], bare[name]) for name in bare)
    assert all(counted)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_rows_equal_the_blocks_of_tensors_saved_by_independent_hooks(dtype):
    model = Net().eval()
    tokens = torch.randint(0, 20, (8, 5))
    expected = independent_rows(model, tokens, 2.0**12, dtype)
    watch = watch_of(model, schedule=EVERY_STEP)
    watch.begin(0)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    (loss * 2.0**12).backward()
    watch.end()
    rows = block_rows(watch.collect()[0])
    roles = ("input", "weight", "grad_output")
    operands = {name for name in expected if name.split(":")[1] in roles and "norm" not in name}
    assert {slot for slot, *_ in rows} == {name for name in operands if "embed" not in name}
    for (slot, size, direction), row in rows.items():
        (tensor,) = expected[slot]
        assert row.histogram == tensor_stats(tensor, blocks=(size,)).blocks.of(size, direction)


def test_micro_batches_add_up_and_the_next_step_starts_anew():
    watch = Watch(Net().eval(), Gate(strict=True), EVERY_STEP)
    train(watch._model, steps=2, watch=watch, accumulate=3)
    for snapshot in watch.collect():
        rows = block_rows(snapshot)
        assert rows["q:input", 16, "last"].histogram.blocks == 3 * 8 * 5
        assert rows["q:weight", 16, "last"].histogram.blocks == 16
        assert rows["q:input", 32, "across"].histogram.blocks == 3 * 16 * 2


def test_gradients_keep_their_loss_scale():
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    watch = watch_of(model, [torch.optim.SGD(model.parameters())], scaler, EVERY_STEP)
    watch.begin(0)
    scaler.scale(model(torch.arange(20)).square().mean()).backward()
    watch.end()
    for row in watch.collect()[0].blocks:
        assert row.loss_scale == (2.0**10 if ":grad_" in row.slot else 1.0)


def steps_with_blocks(schedule, steps):
    watch = watch_of(nn.Sequential(nn.Linear(4, 4)), schedule=schedule)
    for step in steps:
        watch.begin(step)
        watch.end()
    snapshots = watch.collect(everything=True)
    assert all(s.rows.full for s in snapshots if s.blocks)
    return [s.step for s in snapshots if s.blocks]


def test_blocks_ride_on_full_steps_at_least_so_many_apart():
    assert steps_with_blocks(Schedule(5, 1, 0, 12), range(41)) == [0, 15, 30]
    assert steps_with_blocks(Schedule(5, 1, 0, 5), range(11)) == [0, 5, 10]
    # A resumed run begins anywhere, and its first full step counts.
    assert steps_with_blocks(Schedule(5, 1, 0, 100), range(7, 30)) == [10]
    assert steps_with_blocks(Schedule(50, 0, 3, 4), range(10)) == [0, 6]


def test_none_are_counted_and_no_memory_is_taken_where_none_are_wanted():
    assert steps_with_blocks(Schedule(1, 0, 0, 0), range(3)) == []
    sizes = {}
    for n in (0, 1):
        watch = watch_of(nn.Sequential(nn.Linear(4, 4)), schedule=Schedule(1, 0, 0, n))
        watch.begin(0)
        watch.end()
        sizes[n] = watch.bytes
    assert sizes[1] > sizes[0]


def test_only_what_is_watched_is_counted():
    watch = watch_of(Net(), schedule=EVERY_STEP, exclude=["*:weight", "q", "head:input"])
    watch.begin(0)
    watch._model(torch.arange(20)).sum().backward()
    watch.end()
    slots = set(watch.collect()[0].blocks.slots)
    assert slots == {"k:input", "v:input", "k:grad_output", "v:grad_output", "head:grad_output"}


def test_a_cadence_below_0_is_refused():
    with pytest.raises(NumwatchError, match="block_every_n_steps must be an integer of at least 0"):
        Settings(block_every_n_steps=-1)


def test_nothing_waits_for_the_device(no_sync, monkeypatch):
    model = Net()
    monkeypatch.setattr("numwatch.taps.gate._disable_current_modes", nullcontext)
    # The loops of the CPU are no torch operations: what a device gets must be looked at.
    monkeypatch.setattr("numwatch.stats.block_kernel._cpu_sweep", lambda _: _reference())
    watch = watch_of(model, schedule=EVERY_STEP)
    with no_sync():
        watch.begin(0)
        model(torch.arange(20)).square().mean().backward()
        watch.end()
        (snapshot,) = watch.collect()
    assert len(snapshot.blocks)


def _reference():
    from numwatch.stats import block_kernel

    return block_kernel._reference


def test_nothing_of_the_users_is_kept_alive():
    model = Net()
    watch = watch_of(model, schedule=EVERY_STEP)
    alive = []
    model.q.register_forward_hook(lambda _, args, out: alive.extend(map(weakref.ref, (*args, out))))
    watch.begin(0)
    model(torch.arange(20)).sum().backward()
    watch.end()
    assert watch.collect()[0].blocks
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_an_error_in_counting_ends_the_watching_alone(monkeypatch):
    def fail(*_):
        raise MemoryError("a test's")

    monkeypatch.setattr("numwatch.taps.operands.accumulate_blocks", fail)

    def run(watched):
        torch.manual_seed(0)
        model = Net()
        watch = Watch(model, Gate(), EVERY_STEP, exclude=["*:weight"]) if watched else None
        return train(model, watch=watch)

    bare_losses, bare = run(watched=False)
    with pytest.warns(RuntimeWarning, match="numwatch stopped watching.*MemoryError: a test's"):
        losses, weights = run(watched=True)
    assert torch.equal(losses, bare_losses)
    assert all(torch.equal(weights[name], bare[name]) for name in bare)
