"""Weights that are frozen when a step begins, and not when its forward does."""

import pytest
import torch
from torch import nn

import numwatch
from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.watch import Watch


def watched(model, every=1):
    watch = Watch(model, Gate(strict=True), Schedule(every, 0))
    watch.attach()
    return watch


def rows_of_step(watch, model, step, between=lambda: None):
    watch.begin(step)
    between()
    model(torch.ones(2, 4)).sum().backward()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    return {row.slot: row.stats for row in snapshot.rows or ()}


def run_of_two_steps(model, directory):
    options = {"summary": False, "strict": True, "every_n_steps": 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with numwatch.watch(model, optimizer, dir=directory, **options) as watch:
        for _ in range(2):
            loss = model(torch.ones(2, 4)).sum()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return numwatch.open_run(directory)


def test_a_weight_that_is_thawed_within_a_step_shows_its_gradient_in_that_step(count_hooks):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    watch = watched(model)
    assert "0:grad_weight" not in rows_of_step(watch, model, 0)
    rows = rows_of_step(watch, model, 1, lambda: model[0].requires_grad_(True))
    assert rows["0:grad_weight"].sum == pytest.approx(float(model[0].weight.grad.sum()))
    later = rows_of_step(watch, model, 2)["0:grad_weight"]
    assert later.numel == 16  # by one hook still
    watch.detach()
    assert count_hooks(model) == 0


def test_a_weight_that_its_first_forward_makes_is_seen_in_it():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    watch = watched(model)
    assert rows_of_step(watch, model, 0)["0:grad_weight"].numel == 16
    watch.detach()


def test_one_that_no_forward_ever_makes_does_no_harm(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].unused = nn.LazyLinear(3)
    updates = run_of_two_steps(model, tmp_path).updates()
    assert set(updates["slot"].to_pylist()) == {"0.weight:update", "0.bias:update"}


def test_an_expert_stack_too():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(2, 4, 3), requires_grad=False)

        def forward(self, x):
            return torch.einsum("bi,eio->ebo", x, self.up)

    model = nn.Sequential(nn.Linear(4, 4), Experts())
    watch = watched(model)
    rows = rows_of_step(watch, model, 0, lambda: model.requires_grad_(True))
    assert rows["1.up:grad_weight"].numel == 24
    watch.detach()


def test_steps_that_are_not_recorded_hook_nothing(count_hooks):
    model = nn.Sequential(nn.Linear(4, 4))
    model.requires_grad_(False)
    watch = watched(model, every=10)
    watch.begin(0)
    watch.end()
    watch.begin(1)
    before = count_hooks(model)
    model.requires_grad_(True)
    model(torch.ones(2, 4)).sum().backward()
    assert count_hooks(model) == before
    watch.end()
    watch.detach()


def test_a_weight_frozen_between_recorded_steps_is_seen_when_it_is_thawed(count_hooks):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    watch = watched(model, every=2)
    assert "0:grad_weight" in rows_of_step(watch, model, 0)
    rows_of_step(watch, model, 1, lambda: model[0].requires_grad_(False))
    for step in (2, 4):  # begun frozen, as of two networks that train in turns
        rows = rows_of_step(watch, model, step, lambda: model[0].requires_grad_(True))
        assert rows["0:grad_weight"].numel == 16
        rows_of_step(watch, model, step + 1, lambda: model[0].requires_grad_(False))
    watch.detach()
    assert count_hooks(model) == 0


def test_a_weight_put_in_anothers_place_shows_its_gradient_from_the_next_step(count_hooks):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    watch = watched(model)
    rows_of_step(watch, model, 0)
    first = model[0].weight
    model[0].weight = nn.Parameter(torch.ones(4, 4))
    assert rows_of_step(watch, model, 1)["0:grad_weight"].numel == 16
    assert not first._backward_hooks
    watch.detach()
    assert count_hooks(model) == 0


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_seen_as_the_users_hooks_leave_them_at_every_cadence(every):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    watch = watched(model, every)
    for step in range(2):
        rows_of_step(watch, model, step)
    model[0].weight.register_hook(lambda gradient: gradient * 3)
    model.zero_grad()
    rows = rows_of_step(watch, model, 2)
    assert rows["0:grad_weight"].sum == pytest.approx(float(model[0].weight.grad.sum()))
    watch.detach()


def test_a_weight_of_integers_in_anothers_place_is_passed_by():
    class Quantised(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype))

    model = nn.Sequential(Quantised(4, 4), nn.Linear(4, 3))
    watch = watched(model)
    assert "0:grad_weight" in rows_of_step(watch, model, 0)
    model[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    rows = rows_of_step(watch, model, 1)
    assert "0:grad_weight" not in rows
    assert "1:grad_weight" in rows
    watch.detach()


def test_a_freeze_stays_a_freeze_and_puts_no_hook_on_the_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    watch = watched(model, every=2)
    model[0].requires_grad_(False)
    for step in range(3):
        rows = rows_of_step(watch, model, step)
        assert "0:grad_weight" not in rows
        assert not model[0].weight.requires_grad
        assert len(model[0]._forward_pre_hooks) == len(model[1]._forward_pre_hooks)
    assert model[0].weight.grad is None
    watch.detach()


def test_a_loop_of_lazy_modules_is_watched_from_its_first_step(tmp_path):
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    run = run_of_two_steps(model, tmp_path)
    assert run.precision == "float32 weights"
    assert run.tensors(slot="0:output")["step"].to_pylist() == [0, 1]
