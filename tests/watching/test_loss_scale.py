"""What is said of the loss scale, against real scalers and an independent look at the weights."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

SELDOM = Schedule(1000, 0)


class Two(nn.Module):
    """Two parameters whose gradients are what the test wants."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def loss(self, first=1.0, second=1.0):
        return first * self.first.weight.sum() + second * self.second.weight.sum()


def watch_of(model, optimizers, scaler, schedule=SELDOM):
    watch = Watch(model, Gate(strict=True), schedule)
    watch.attach(optimizers, scaler)
    return watch


def plain_step(watch, step, optimizer, scaler, loss):
    """A step of a plain loop; returns whether the weights moved."""
    optimizer.zero_grad()
    watch.begin(step)
    scaler.scale(loss).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    scaler.step(optimizer)
    scaler.update()
    watch.end()
    return not all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("schedule", [SELDOM, Schedule(1, 0), Schedule(1000, 1)])
def test_the_parameter_that_overflowed_is_named_on_every_schedule(fused, schedule):
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    watch = watch_of(model, [optimizer], scaler, schedule)
    factors = [(1, 1), (1, float("inf")), (1, 1), (float("nan"), 1), (2.0**127, 2.0**127), (1, 1)]
    moved, scales = [], [scaler.get_scale()]
    for step, (first, second) in enumerate(factors):
        moved.append(plain_step(watch, step, optimizer, scaler, model.loss(first, second)))
        scales.append(scaler.get_scale())
    steps = [snapshot.scalars for snapshot in watch.collect(everything=True)]
    assert [not step.skipped for step in steps] == moved == [True, False, True, False, False, True]
    assert [step.found_inf for step in steps] == [not took for took in moved]
    assert [step.nonfinite_parameters for step in steps] == [
        None,
        ("second.weight",),
        None,
        ("first.weight",),
        ("first.weight", "second.weight"),
        None,
    ]
    assert [step.loss_scale_before for step in steps] == scales[:-1]
    assert [step.loss_scale_after for step in steps] == scales[1:]
    assert [step.skipped_optimizers for step in steps] == [() if m else (0,) for m in moved]


@pytest.mark.parametrize("growth", [2.0, 3.0])
@pytest.mark.parametrize("backoff", [0.5, 0.25, 1.0])
def test_custom_growth_and_backoff_are_followed_and_no_proof_of_a_skip(growth, backoff):
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backoff = min(backoff, 0.999999)  # the scaler wants less than 1
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=64.0, growth_factor=growth, backoff_factor=backoff, growth_interval=1
    )
    watch = watch_of(model, [optimizer], scaler)
    factors = [1, float("inf"), float("inf"), 1, 1]
    scales = [scaler.get_scale()]
    for step, factor in enumerate(factors):
        plain_step(watch, step, optimizer, scaler, model.loss(factor))
        scales.append(scaler.get_scale())
    steps = [snapshot.scalars for snapshot in watch.collect(everything=True)]
    assert [step.skipped for step in steps] == [False, True, True, False, False]
    found = [step.loss_scale_before for step in steps] + [steps[-1].loss_scale_after]
    assert found == scales


def test_a_static_scale_that_is_set_by_hand_is_no_skip():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**9)
    watch = watch_of(model, [optimizer], scaler)
    plain_step(watch, 0, optimizer, scaler, model.loss())
    watch.begin(1)
    scaler.scale(model.loss()).backward()
    scaler.step(optimizer)
    scaler.update(512.0)
    watch.end()
    steps = [snapshot.scalars for snapshot in watch.collect(everything=True)]
    assert [(s.loss_scale_before, s.loss_scale_after, s.skipped) for s in steps] == [
        (1024.0, 1024.0, False),
        (1024.0, 512.0, False),
    ]


def test_without_a_scaler_a_nan_is_stepped_into_the_weights_and_nothing_is_skipped():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_of(model, [optimizer], None)
    watch.begin(0)
    model.loss(float("nan")).backward()
    optimizer.step()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    scalars = snapshot.scalars
    assert (scalars.skipped, scalars.found_inf, scalars.nonfinite_parameters) == (
        False,
        False,
        None,
    )
    assert (scalars.loss_scale_before, scalars.loss_scale_after) == (1.0, 1.0)


def test_gradients_cleared_before_the_step_ends_leave_the_culprit_unknown():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    watch = watch_of(model, [optimizer], scaler)
    watch.begin(0)
    scaler.scale(model.loss(float("inf"))).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    assert snapshot.scalars.skipped
    assert snapshot.scalars.found_inf
    assert snapshot.scalars.nonfinite_parameters is None


def test_of_two_optimizers_in_a_plain_loop_the_one_that_was_skipped_is_known():
    model = Two()
    optimizers = [
        torch.optim.SGD([model.first.weight], lr=0.1),
        torch.optim.SGD([model.second.weight], lr=0.1),
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    watch = watch_of(model, optimizers, scaler)
    # The second optimizer has its turn every other step only.
    inf, nan = float("inf"), float("nan")
    plan = [((1, 1), (0, 1)), ((inf, 1), (0, 1)), ((1, 1), (0,)), ((1, nan), (0, 1))]
    for step, (factors, turns) in enumerate(plan):
        watch.begin(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(model.loss(*factors)).backward()
        for turn in turns:
            scaler.step(optimizers[turn])
        scaler.update()
        watch.end()
    steps = [snapshot.scalars for snapshot in watch.collect(everything=True)]
    assert [step.skipped_optimizers for step in steps] == [(), (0,), (), (1,)]
    assert [step.nonfinite_parameters for step in steps] == [
        None,
        ("first.weight",),
        None,
        ("second.weight",),
    ]
    assert [step.found_inf for step in steps] == [False, True, False, True]


def test_announced_turns_with_their_own_updates_keep_each_its_scale():
    """As Lightning's manual optimization has it: the scaler updates after each optimizer."""
    model = Two()
    optimizers = [
        torch.optim.SGD([model.first.weight], lr=0.1),
        torch.optim.SGD([model.second.weight], lr=0.1),
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    watch = watch_of(model, optimizers, scaler, Schedule(1, 0))
    watch.begin(0)
    x = torch.ones(1, 2)
    for i, (layer, factor) in enumerate(((model.first, float("inf")), (model.second, 1.0))):
        optimizers[i].zero_grad()
        scaler.scale(factor * layer(x).sum()).backward()
        scaler.unscale_(optimizers[i])
        watch.before_optimizer_step(optimizers[i])
        scaler.step(optimizers[i])
        scaler.update()
        optimizers[i].zero_grad()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    scalars = snapshot.scalars
    assert scalars.loss_scales == (16.0, 8.0)
    assert (scalars.loss_scale_before, scalars.loss_scale_after) == (16.0, 8.0)
    assert scalars.skipped_optimizers == (0,)
    assert scalars.nonfinite_parameters == ("first.weight",)
    scale_of = {row.slot: row.loss_scale for row in snapshot.rows}
    assert scale_of["first:grad_output"] == 16.0
    assert scale_of["second:grad_output"] == 8.0
    unscaled = next(row for row in snapshot.rows if row.slot == "second:grad_output")
    assert unscaled.stats.amax / unscaled.loss_scale == 1.0


def test_an_optimizer_that_has_its_turn_twice_in_a_step():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    watch = watch_of(model, [optimizer], scaler, Schedule(1, 0))
    watch.begin(0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model.loss(factor)).backward()
        scaler.unscale_(optimizer)
        watch.before_optimizer_step(optimizer)
        scaler.step(optimizer)
        scaler.update()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    assert snapshot.scalars.skipped
    assert snapshot.scalars.found_inf
    assert (snapshot.scalars.loss_scale_before, snapshot.scalars.loss_scale_after) == (16.0, 8.0)


def test_forty_steps_of_inf_are_followed_down_to_2_to_the_minus_24():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    watch = watch_of(model, [optimizer], scaler)
    for step in range(170):
        assert not plain_step(watch, step, optimizer, scaler, model.loss(float("inf")))
    steps = [snapshot.scalars for snapshot in watch.collect(everything=True)]
    assert all(step.skipped for step in steps)
    assert steps[0].loss_scale_after == 32768.0
    assert steps[15].loss_scale_after == 1.0
    assert steps[39].loss_scale_after == 2.0**-24
    assert steps[164].loss_scale_after == 2.0**-149
    assert steps[165].loss_scale_after == 0.0


def test_looking_for_culprits_waits_for_nothing(no_sync, monkeypatch):
    monkeypatch.setattr("numwatch.taps.gate._disable_current_modes", nullcontext)
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    watch = watch_of(model, [optimizer], scaler)
    watch.begin(0)
    scaler.scale(model.loss(float("inf"))).backward()
    scaler.step(optimizer)
    scaler.update()
    with no_sync():
        watch.end()
    (snapshot,) = watch.collect(everything=True)
    assert snapshot.scalars.nonfinite_parameters == ("first.weight",)
