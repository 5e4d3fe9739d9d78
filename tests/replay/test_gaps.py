"""What a replay makes of steps, rows and runs that are missing."""

import numpy as np
import pytest
import torch
from torch import nn

import numwatch
from numwatch.emulate import emulate
from numwatch.formats import get_format
from numwatch.plan import ModulePlan, Operand, Plan
from numwatch.recipes import CurrentScaling, DelayedScaling, parse_recipe
from numwatch.replay import Replayer, replay
from numwatch.replay.history import History

ROLES = ("input", "weight", "grad_output")


class Sometimes(nn.Module):
    """A branch that runs on two steps of five, beside a trunk that always runs."""

    def __init__(self):
        super().__init__()
        self.trunk, self.branch = nn.Linear(16, 16), nn.Linear(16, 16)
        self.step = 0

    def forward(self, x):
        y = self.trunk(x)
        return y + self.branch(y) if self.step % 5 in (1, 2) else y


def plan(recipe):
    def operand(fmt):
        return Operand(get_format(fmt), parse_recipe(recipe))

    operands = dict(zip(ROLES, map(operand, ("e4m3", "e4m3", "e5m2")), strict=True))
    return Plan("fp8", modules=tuple(ModulePlan(m, operands) for m in ("trunk", "branch")))


def run_of(directory, recipe=None, *, steps=30, poison=(), zero=(), batches=1, **cadence):
    torch.manual_seed(0)
    net = Sometimes()
    if recipe is not None:
        emulate(net, plan(recipe))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    cadence = {"every_n_steps": 1, "amax_every_n_steps": 0, **cadence}
    with numwatch.watch(
        net, optimizer, dir=directory, summary=False, audit=False, origin=False, **cadence
    ) as watch:
        for step in range(steps):
            net.step = step
            optimizer.zero_grad()
            for _ in range(batches):
                x = torch.randn(8, 16, generator=generator) * 2.0 ** (step % 4)
                x[:1] *= torch.inf if step in poison else 1.0
                loss = net(x * (step not in zero)).square().mean()
                loss.backward()
            if step not in poison:
                optimizer.step()
            watch.step(loss=loss.detach().nan_to_num())
    return numwatch.open_run(directory)


def of(found, slot):
    return next(one for one in found.slots if one.slot == slot)


@pytest.mark.parametrize("poison", [(), (6, 11)])
@pytest.mark.parametrize("recipe", ["delayed:history=3", "delayed:algorithm=most_recent"])
def test_modules_that_run_now_and_then_keep_their_own_time(tmp_path, recipe, poison):
    """And so do operands that were infinite or NaN: scales are those of the real stateful run."""
    run = run_of(tmp_path, recipe, poison=poison)
    found = replay(run, parse_recipe(recipe))
    assert found.certain
    for one in found.slots:
        rows = [row for row in run.tensors(one.slot).to_pylist() if row["step"] in one.step]
        assert one.scale.tolist() == [row["cast_scale"] for row in rows], one.slot
    branch = [of(found, f"branch:{role}").step.tolist() for role in ROLES]
    assert branch == [[step for step in range(30) if step % 5 in (1, 2)]] * 3


def test_runs_are_steps_but_those_known_to_lack_the_slot(tmp_path):
    run = run_of(tmp_path, every_n_steps=6, amax_every_n_steps=3)
    history = History(run, ROLES)
    trunk, branch = history.slot("trunk:input"), history.slot("branch:input")
    assert trunk.step.tolist() == trunk.run.tolist() == list(range(0, 30, 3))
    assert trunk.full.tolist() == [True, False] * 5
    assert branch.step.tolist() == [6, 12, 21, 27]
    # Of the recorded steps 0, 3, 9, 15, 18 and 24 it had no row; of the others nobody knows.
    assert branch.run.tolist() == [4, 9, 16, 21]


def test_what_a_history_saw_is_counted(tmp_path):
    run = run_of(tmp_path, every_n_steps=6, amax_every_n_steps=3)
    replayed = Replayer(run)
    reach = of(replayed(DelayedScaling(4)), "trunk:input").reach
    # After the first row: histories of 3, then 4, amaxes; the one three steps before was seen.
    assert (reach.seen, reach.held, reach.blind) == (9, 3 + 8 * 4, 0)
    blind = of(replayed(DelayedScaling(2)), "trunk:input")
    assert (blind.reach.seen, blind.reach.held, blind.reach.blind) == (0, 9 * 2, 9)
    amax = np.array([row["amax"] for row in run.tensors("trunk:input").to_pylist()], np.float32)
    assert blind.scale[1:].tolist() == (np.float32(448) / amax[:-1]).tolist()
    assert replayed(CurrentScaling()).certain


def test_a_record_that_sees_everything_is_certain_but_for_merged_micro_batches(tmp_path):
    assert replay(run_of(tmp_path / "one"), DelayedScaling()).certain
    found = replay(run_of(tmp_path / "two", batches=2), DelayedScaling())
    assert not of(found, "trunk:input").certain
    assert of(found, "trunk:input").reach.merged
    assert of(found, "trunk:weight").certain


def test_first_steps_count_in_no_figure(tmp_path):
    """A first step casts at scale 1, at which E5M2 flushes all of these gradients."""
    run = run_of(tmp_path, steps=6)
    one = of(replay(run, DelayedScaling(), formats="e2m1"), "trunk:grad_output")
    assert one.start.tolist() == [True, *[False] * 5]
    assert one.scale[0] == 1.0
    assert one.flushed[0, 0] > 0.9
    assert one.worst_flushed < 0.9
    assert one.steps_known == 5


def test_tensors_that_are_all_zero_flush_and_saturate_nothing(tmp_path):
    run = run_of(tmp_path, steps=6, zero=(0, 3, 5))
    for recipe in (DelayedScaling(2), CurrentScaling()):
        one = of(replay(run, recipe), "trunk:input")
        assert one.elements[[0, 3, 5]].tolist() == [0, 0, 0]
        assert (one.saturated[[0, 3, 5]] == 0).all()
        assert np.isnan(one.wasted[[0, 3, 5]]).all()
    delayed = of(replay(run, DelayedScaling(2)), "trunk:input")
    # Nothing preceded the first two; a zero does not roll.
    assert delayed.start.tolist() == [True, True, False, False, False, False]


def test_a_resumed_run_goes_on_with_its_history(tmp_path):
    first = run_of(tmp_path, steps=8)
    scales = of(replay(first, DelayedScaling(4)), "trunk:input").scale
    torch.manual_seed(0)
    run_of(tmp_path, steps=5)  # another attempt, from step 0 on: it replaces the first
    again = of(replay(numwatch.open_run(tmp_path), DelayedScaling(4)), "trunk:input")
    assert again.scale.tolist() == scales[:5].tolist()


def test_many_recipes_read_the_record_once(tmp_path):
    run = run_of(tmp_path, steps=4)
    read = []
    replayed = Replayer(run, progress=read.append)
    for history in (1, 2, 3):
        replayed(DelayedScaling(history))
    assert sum(read) == run.rows("tensors")
