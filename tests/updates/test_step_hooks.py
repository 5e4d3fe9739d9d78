"""Torch's hooks on the steps of all optimizers: they harm no step, and none stays."""

import gc
import sys
import threading
import weakref
from contextlib import ExitStack

import pytest
import torch
from update_runs import backward, net, torch_s_hooks, updates_watch

import numwatch
from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.taps.optimizers import OptimizerTaps
from numwatch.taps.strays import Strays
from numwatch.watch import Watch


def test_a_watch_that_nobody_ended_is_not_kept_alive_by_torch_s_hooks():
    before = torch_s_hooks()
    watch = updates_watch(net(), None)
    dead = weakref.ref(watch)
    del watch
    gc.collect()
    assert dead() is None
    assert torch_s_hooks() == before


def test_where_all_parameters_are_given_torch_has_no_hook_of_ours():
    before = torch_s_hooks()
    model = net()
    watch = updates_watch(model, torch.optim.SGD(model.parameters()), None)
    assert torch_s_hooks() == before
    watch.detach()


def test_the_last_watch_of_several_takes_the_hooks_along():
    before = torch_s_hooks()
    first, second = (updates_watch(net(), None) for _ in range(2))
    assert all(len(own - was) == 1 for own, was in zip(torch_s_hooks(), before, strict=True))
    first.detach()
    assert torch_s_hooks() != before
    second.detach()
    assert torch_s_hooks() == before


@pytest.mark.parametrize("strays", [1, 2])
def test_an_error_of_ours_in_a_step_does_not_reach_it(tmp_path, monkeypatch, strays):
    def broken(_self, _optimizer):
        raise RuntimeError("planted")

    monkeypatch.setattr(Strays, "has", broken)
    foreign = net()
    backward(foreign, torch.ones(2, 8))
    optimizer = torch.optim.SGD(foreign.parameters(), lr=0.1)
    before = torch_s_hooks()
    places = [tmp_path / str(i) for i in range(strays)]
    with ExitStack() as watches:
        for place in places:
            watches.enter_context(numwatch.watch(net(), dir=place, summary=False))
        with pytest.warns(RuntimeWarning, match="planted"):
            optimizer.step()
    assert torch_s_hooks() == before


def test_other_threads_step_while_watches_come_and_go():
    """Torch goes through its hooks in the other thread; none may vanish under it."""
    within, gone = threading.Event(), threading.Event()
    errors = []

    class Slow(torch.optim.SGD):
        @property
        def param_groups(self):
            if threading.current_thread().name == "other" and not within.is_set():
                within.set()
                gone.wait(10)
            return self.__dict__["param_groups"]

        @param_groups.setter
        def param_groups(self, groups):
            self.__dict__["param_groups"] = groups

    foreign = net()
    backward(foreign, torch.ones(2, 8))
    optimizer = Slow(foreign.parameters(), lr=0.1)

    def run():
        try:
            optimizer.step()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="other")
    watches = [Watch(net(), Gate(strict=True), Schedule(1, 0)) for _ in range(2)]
    for watch in watches:
        watch.attach()
        watch.begin(0)
    thread.start()
    assert within.wait(10)
    for watch in watches:  # the other thread is inside the hook of the first
        watch.detach()
    gone.set()
    thread.join()
    assert errors == []


def calls_of(function):
    """How many functions of numwatch's own a call of another leads to."""
    calls = []

    def note(frame, event, _):
        if event == "call" and "numwatch" in frame.f_globals.get("__name__", ""):
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_a_step_that_is_not_recorded_costs_little():
    model = net()
    backward(model, torch.ones(2, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, Gate(strict=True), Schedule(100, 0))
    watch.attach([optimizer])
    for step in range(2):
        watch.begin(step)
        calls = calls_of(optimizer.step)
        watch.end()
    watch.detach()
    assert len(calls) <= 8, calls


@pytest.mark.parametrize("moment", ["before_step", "after_step"])
def test_an_error_of_ours_takes_no_hook_off_while_torch_goes_through_them(
    tmp_path, monkeypatch, moment
):
    def broken(*_, **__):
        raise RuntimeError("planted")

    monkeypatch.setattr(OptimizerTaps, moment, broken)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with numwatch.watch(model, optimizer, dir=tmp_path, summary=False) as watch:
        optimizer.register_step_pre_hook(lambda *_: None)
        optimizer.register_step_post_hook(lambda *_: None)  # ours are not the last
        backward(model, torch.ones(2, 8))
        with pytest.warns(RuntimeWarning, match="planted"):
            optimizer.step()
        watch.step()
        assert len(optimizer._optimizer_step_pre_hooks) == 1
