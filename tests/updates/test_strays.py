"""Optimizers that nobody told of, found by their steps."""

import pytest
import torch
from torch import nn
from update_runs import backward, net, run_of, torch_s_hooks, unseen

from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate
from numwatch.watch import Watch


@pytest.mark.parametrize("given", ["none", "each", "a dummy"])
def test_optimizers_within_backward_are_found(tmp_path, given):
    before = torch_s_hooks()
    model = net()
    by_parameter = {p: torch.optim.AdamW([p], foreach=False) for p in model.parameters()}

    def step_at_once(parameter):
        by_parameter[parameter].step()
        by_parameter[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_at_once)
    # The last is what transformers hands out where an optimizer works layer by layer.
    optimizers = {
        "none": None,
        "each": list(by_parameter.values()),
        "a dummy": torch.optim.SGD([torch.zeros(1, 1)], lr=1e-3),
    }

    def step(model, x):
        loss = backward(model, x)
        if given == "a dummy":
            optimizers[given].step()
        return loss

    run = run_of(tmp_path, model, optimizers[given], step)
    names = {f"{name}:update" for name, _ in model.named_parameters()}
    updates = run.updates().to_pylist()
    for step in range(3):
        assert {line["slot"] for line in updates if line["step"] == step} == names
    assert len({(line["step"], line["slot"], line["storage"]) for line in updates}) == len(updates)
    assert run.states().num_rows == 3 * 4 * 2
    assert None not in run.steps()["grad_norm"].to_pylist()
    assert not any(run.steps()["skipped"].to_pylist())
    assert unseen(run) == []
    assert torch_s_hooks() == before


@pytest.mark.parametrize("every", [1, 10])
def test_that_weights_have_moved_is_known_on_every_step(every):
    model = net()
    watch = Watch(model, Gate(strict=True), Schedule(every, 0))
    watch.attach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        watch.begin(step)
        backward(model, torch.ones(2, 8))
        assert not watch.stepped
        optimizer.step()
        assert watch.stepped
        watch.end()
    watch.detach()


def test_an_optimizer_inside_another_is_no_further_one(tmp_path):
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    class Outer(torch.optim.Optimizer):
        def __init__(self):
            super().__init__(list(model.parameters()), {})

        def step(self, closure=None):
            inner.step()

    outer = Outer()

    def step(model, x):
        loss = backward(model, x)
        outer.step()
        return loss

    updates = run_of(tmp_path, model, outer, step, steps=1).updates().to_pylist()
    assert updates
    assert len({(line["slot"], line["storage"]) for line in updates}) == len(updates)


def test_optimizers_of_other_models_are_nobody_s(tmp_path):
    model, other = net(), net()
    own, foreign = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, other))

    def step(model, x):
        backward(other, x)
        foreign.step()
        loss = backward(model, x)
        own.step()
        return loss

    run = run_of(tmp_path, model, own, step, steps=1)
    assert {line["slot"] for line in run.updates().to_pylist()} == {
        f"{name}:update" for name, _ in model.named_parameters()
    }


def test_what_steps_without_an_optimizer_is_said_not_to_be_seen(tmp_path):
    def step(model, x):
        loss = backward(model, x)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
        return loss

    run = run_of(tmp_path, net(), None, step)
    assert run.updates().num_rows == 0
    assert unseen(run) == [
        "updates, state and gradient norm: no optimizer was given or found by its steps"
    ]


def test_nothing_is_said_where_no_updates_are_wanted(tmp_path):
    run = run_of(tmp_path, net(), None, backward, update_samples=0)
    assert unseen(run) == []


def test_one_in_place_of_one_that_is_gone_is_found(tmp_path):
    model = net()
    optimizers = []

    def step(model, x):
        optimizers[:] = [torch.optim.SGD(model.parameters(), lr=0.1)]
        loss = backward(model, x)
        optimizers[0].step()
        return loss

    run = run_of(tmp_path, model, None, step)
    assert set(run.updates()["step"].to_pylist()) == {0, 1, 2}


class Unhashable(torch.optim.SGD):
    """An optimizer that compares by what it holds."""

    __hash__ = None

    def __eq__(self, other):
        return self is other


@pytest.mark.parametrize("given", [True, False])
def test_an_optimizer_needs_no_hash(tmp_path, given):
    model = net()
    optimizer = Unhashable(model.parameters(), lr=0.1)

    def step(model, x):
        loss = backward(model, x)
        optimizer.step()
        return loss

    run = run_of(tmp_path, model, optimizer if given else None, step)
    assert set(run.updates()["step"].to_pylist()) == {0, 1, 2}


def test_a_fused_one_has_its_norm_unscaled_and_is_said_not_to_be_known_of(tmp_path):
    norms, notes = [], []
    for given in (True, False):
        model = net()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def step(model, x, optimizer=optimizer, scaler=scaler):
            loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss

        own = optimizer if given else None
        run = run_of(tmp_path / str(given), model, own, step, scaler=scaler)
        norms.append(run.steps()["grad_norm"].to_pylist())
        notes.append(unseen(run))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert notes == [
        [],
        ["updates and state: which steps SGD skipped; it was not given to numwatch"],
    ]


def test_sparse_gradients_are_not_said_to_be_gone(tmp_path):
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, _):
        return optimizer.step(lambda: backward(model, torch.arange(4)))

    (note,) = unseen(run_of(tmp_path, model, optimizer, step))
    assert note.startswith("sparse gradients: 0.weight")


def test_one_that_takes_no_hooks_is_watched_around(tmp_path):
    class Wrapper:
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups

    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, x):
        loss = backward(model, x)
        inner.step()
        return loss

    run = run_of(tmp_path, model, [Wrapper(inner)], step)
    assert run.steps().num_rows == 3
    assert unseen(run) == ["updates and state: Wrapper tells nobody of its steps"]


def test_a_step_that_a_scaler_leaves_out_is_known(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    factors = iter((1.0, torch.inf, 1.0))

    def step(model, x):
        loss = model(x).square().mean() * next(factors)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    steps = run_of(tmp_path, model, None, step, scaler=scaler).steps()
    assert steps["skipped"].to_pylist() == [False, True, False]
    assert steps["found_inf"].to_pylist() == [False, True, False]


def test_a_step_that_they_alone_made_has_trained():
    model = net()
    stray = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, Gate(strict=True), Schedule(1))
    watch.attach()
    watch.begin(0)
    for parameter in model.parameters():  # as from a graph that calls no hooks
        parameter.grad = torch.ones_like(parameter)
    stray.step()
    stray.zero_grad()
    watch.end()
    watch.detach()
    assert watch.blind
