"""An optimizer that takes the place of another in mid-run."""

import gc
import weakref

import pytest
import torch
from update_runs import backward, net, run_of, torch_s_hooks, unseen

import numwatch


def switching(given, made, at):
    """Returns a step that works with an optimizer made anew from some step on."""
    optimizers, steps = [given], iter(range(100))

    def step(model, x):
        if next(steps) == at:
            optimizers[:] = [made()]
        loss = backward(model, x)
        optimizers[0].step()
        optimizers[0].zero_grad()
        return loss

    return step


def steps_with_updates(run):
    return sorted(set(run.updates()["step"].to_pylist()))


def test_one_that_takes_anothers_place_is_followed_from_its_third_step(tmp_path):
    before = torch_s_hooks()
    model = net()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = switching(adam, lambda: torch.optim.SGD(model.parameters(), lr=0.1), at=2)
    run = run_of(tmp_path, model, adam, step, steps=6)
    steps = run.steps()
    assert steps["skipped"].to_pylist() == [step == 2 for step in range(6)]
    assert steps["lr"].to_pylist() == [1e-3, 1e-3, 1e-3, 0.1, 0.1, 0.1]
    assert [norm is None for norm in steps["grad_norm"].to_pylist()] == [
        s in (2, 3) for s in range(6)
    ]
    assert steps_with_updates(run) == [0, 1, 4, 5]
    assert set(run.states()["step"].to_pylist()) == {0, 1}  # SGD without momentum has none
    (note,) = unseen(run)
    assert "up to two first steps of SGD, which took the place of AdamW" in note
    assert torch_s_hooks() == before


def test_the_one_that_is_gone_is_not_kept_alive(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = weakref.ref(optimizer)
    with numwatch.watch(model, optimizer, dir=tmp_path, summary=False, strict=True) as watch:
        for step in range(4):
            if step == 2:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            loss = backward(model, torch.ones(2, 8))
            optimizer.step()
            watch.step(loss=loss)
        gc.collect()
        assert first() is None


@pytest.mark.parametrize("scaled", [False, True])
def test_one_of_two_is_replaced_in_its_place(tmp_path, scaled):
    model = net()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    others = torch.optim.SGD(first, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
    step_numbers = iter(range(100))
    optimizers = [others, torch.optim.SGD(second, lr=0.1)]

    def step(model, x):
        if next(step_numbers) == 1:
            optimizers[1] = torch.optim.Adam(second, lr=0.1)
        loss = model(x).square().mean()
        scaler.scale(loss).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        return loss

    run = run_of(tmp_path, model, list(optimizers), step, steps=4, scaler=scaler)
    assert run.steps()["skipped"].to_pylist() == [False] * 4
    names = {line["slot"]: [] for line in run.updates().to_pylist()}
    for line in run.updates().to_pylist():
        names[line["slot"]].append(line["step"])
    of_first = {
        f"{name}:update" for name, p in model.named_parameters() if any(p is q for q in first)
    }
    for slot, steps in names.items():
        assert sorted(set(steps)) == ([0, 1, 2, 3] if slot in of_first else [0, 3])


def test_two_that_take_turns_skip_no_step(tmp_path):
    model = net()
    pair = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    turns = iter(range(100))

    def step(model, x):
        loss = backward(model, x)
        pair[next(turns) % 2].step()
        return loss

    run = run_of(tmp_path, model, pair[0], step, steps=6)
    assert run.steps()["skipped"].to_pylist() == [step == 1 for step in range(6)]


def test_a_step_that_nobody_makes_is_skipped_still(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    turns = iter(range(100))

    def step(model, x):
        loss = backward(model, x)
        (other if next(turns) == 2 else optimizer).step()
        return loss

    run = run_of(tmp_path, model, optimizer, step, steps=4)
    assert run.steps()["skipped"].to_pylist() == [False, False, True, False]
    assert unseen(run) == []


def test_a_failure_after_the_change_keeps_the_state_of_the_one_that_steps(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with numwatch.watch(model, optimizer, dir=tmp_path, summary=False, strict=True) as watch:
        for step in range(6):
            if step == 2:
                optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
            x = torch.full((2, 8), float("inf") if step == 5 else 1.0)
            watch.shadow(lambda model, x=x: model(x).square().mean(), batch=x)
            loss = backward(model, x)
            optimizer.step()
            watch.step(loss=loss)
    capsule = numwatch.load_capsule(tmp_path)
    assert capsule.facts["step"] == 5
    assert capsule.facts["notes"] == []  # it was kept before the step
    (state,) = capsule.state["optimizers"]
    assert "momentum_buffer" in state["state"][0]


def of_steps(run):
    """The steps in which each parameter had updates."""
    found = {}
    for line in run.updates().to_pylist():
        found.setdefault(line["slot"].removesuffix(":update"), set()).add(line["step"])
    return found


def test_two_that_take_the_place_of_one_are_both_followed(tmp_path):
    model = net()
    parameters = list(model.parameters())
    optimizers, turns = [torch.optim.SGD(parameters, lr=0.1)], iter(range(100))

    def step(model, x):
        if next(turns) == 2:
            halves = parameters[:2], parameters[2:]
            optimizers[:] = [torch.optim.Adam(half, lr=0.1) for half in halves]
        loss = backward(model, x)
        for optimizer in optimizers:
            optimizer.step()
        return loss

    run = run_of(tmp_path, model, list(optimizers), step, steps=6)
    assert all({0, 1, 4, 5} <= steps for steps in of_steps(run).values())
    assert run.steps()["skipped"].to_pylist() == [step == 2 for step in range(6)]


class Outer(torch.optim.Optimizer):
    """Steps beside another optimizer of the same parameters, as DiLoCo's does."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


def test_one_that_was_only_left_out_gets_its_place_back(tmp_path):
    model = net()
    optimizer, outer = torch.optim.SGD(model.parameters(), lr=0.1), Outer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    turns, bad = iter(range(100)), (2, 3, 6)

    def step(model, x):
        at = next(turns)
        loss = model(x).square().mean()
        scaler.scale(loss * (float("inf") if at in bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        outer.step()
        optimizer.zero_grad()
        return loss

    run = run_of(tmp_path, model, optimizer, step, steps=9, scaler=scaler)
    steps = run.steps()
    assert steps["lr"].to_pylist()[5:] == [0.1] * 4
    skipped = steps["skipped"].to_pylist()
    assert [skipped[i] for i in (0, 1, 2, 4, 5, 7, 8)] == [i == 2 for i in (0, 1, 2, 4, 5, 7, 8)]


@pytest.mark.parametrize("every", [1, 100])
def test_one_of_parameters_that_took_the_places_of_its_own_is_followed(tmp_path, every):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with numwatch.watch(
        model, optimizer, dir=tmp_path, summary=False, strict=True, every_n_steps=every
    ) as watch:
        for step in range(7):
            if step == 2:
                state = {name: value.clone() for name, value in model.state_dict().items()}
                model.load_state_dict(state, assign=True)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
                second = weakref.ref(optimizer)
            if step == 5:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            loss = backward(model, torch.ones(2, 8))
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss=loss)
        gc.collect()
        assert second() is None
    steps = numwatch.open_run(tmp_path).steps()
    assert steps["skipped"].to_pylist() == [step == 2 for step in range(7)]
    assert steps["lr"].to_pylist()[3:] == [0.2, 0.2, 0.3, 0.3]


def test_what_the_model_does_not_have_keeps_its_name(tmp_path):
    model, temperature = net(), torch.nn.Parameter(torch.ones(()))

    def made():
        return torch.optim.SGD([*model.parameters(), temperature], lr=0.1)

    optimizer = made()
    with numwatch.watch(
        model, optimizer, dir=tmp_path, summary=False, strict=True, every_n_steps=1
    ) as watch:
        for step in range(6):
            if step == 2:
                optimizer = made()
            (model(torch.ones(2, 8)).square().mean() * temperature).backward()
            optimizer.step()
            watch.step()
    found = of_steps(numwatch.open_run(tmp_path))
    outside = {name: steps for name, steps in found.items() if "outside" in name}
    assert outside == {"outside_the_model.0": {0, 1, 4, 5}}
