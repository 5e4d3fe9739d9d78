"""`Module.to` may put new memory under a weight: torch refuses that where weak references are."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from versions import needs_fsdp2

import numwatch

STEPS, MOVED = 6, 1
"""How many steps there are, and the one after which the model is moved."""


@pytest.fixture
def _swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def trained(move, directory=None, prepare=lambda model: model, every=1):
    """Returns the weights after some steps, of a model and of a module that its loss has."""
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 80)))
    outside = nn.Linear(1, 1)
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (model, outside)]
    cadence = {"every_n_steps": every, "amax_every_n_steps": every}
    watching = (
        numwatch.watch(model, optimizers, dir=directory, strict=True, summary=False, **cadence)
        if directory
        else nullcontext()
    )
    with watching as watch:
        for step in range(STEPS):
            x = torch.randn(8, 80).to(next(model.parameters()).dtype)
            loss = outside(model(x).square().mean().reshape(1)).sum()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if watch:
                watch.step(loss=loss)
            if step == MOVED:
                move(model)
                move(outside)
    parameters = [*model.parameters(), *outside.parameters()]
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]


def steps_of(run, slot):
    return run.tensors(slot=slot)["step"].to_pylist()


def sharded(mesh):
    def shard(model):
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return shard


def parallel(mesh):
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return lambda model: parallelize_module(model, mesh, plan)


@pytest.mark.usefixtures("_swapping")
@pytest.mark.parametrize("every", [1, 2])
def test_a_model_converted_by_swaps_trains_as_it_would_alone(every, tmp_path):
    def move(model):
        model.to(torch.bfloat16)

    expected = trained(move)
    assert all(map(torch.equal, trained(move, tmp_path, every=every), expected))
    run, recorded = numwatch.open_run(tmp_path), list(range(0, STEPS, every))
    assert steps_of(run, "2:grad_output") == steps_of(run, "2:weight") == recorded
    assert steps_of(run, "0.weight:update") == recorded
    assert steps_of(run, "outside_the_model.0:update") == recorded
    # The step under way when it was converted had its hooks on memory that is gone.
    assert steps_of(run, "0:grad_weight") == [s for s in recorded if s != MOVED + 1]


@pytest.mark.filterwarnings("ignore:DTensor random operators")
@pytest.mark.parametrize("shards", [pytest.param(sharded, marks=needs_fsdp2), parallel])
def test_dtensors_which_are_always_swapped_can_be_moved(shards, mesh, tmp_path):
    prepare = shards(mesh)
    expected = trained(nn.Module.cpu, prepare=prepare)
    assert all(map(torch.equal, trained(nn.Module.cpu, tmp_path, prepare), expected))
    run = numwatch.open_run(tmp_path)
    assert steps_of(run, "2:grad_output") == steps_of(run, "0.weight:update") == list(range(STEPS))
    assert steps_of(run, "2:grad_weight")[-1] == STEPS - 1


@pytest.mark.usefixtures("_swapping")
@pytest.mark.parametrize("every", [1, 3])
def test_a_users_hook_on_a_weight_that_was_swapped_is_called(every, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4))

    def train():
        model.zero_grad()
        model(torch.ones(2, 4).to(model[0].weight.dtype)).square().sum().backward()

    called = []
    cadence = {"every_n_steps": every, "amax_every_n_steps": 0}
    with numwatch.watch(model, dir=tmp_path, strict=True, summary=False, **cadence) as watch:
        train()
        watch.step()
        model.to(torch.float64)
        if every > 1:  # the step under way is not recorded
            model[0].weight.register_hook(called.append)
            train()
            watch.step()
    if every == 1:  # nothing is left
        model[0].weight.register_hook(called.append)
        train()
    assert len(called) == 1


@pytest.mark.usefixtures("_swapping")
def test_one_put_on_in_a_recorded_step_is_called_from_the_next_on(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    calls, called = [], []
    with numwatch.watch(model, dir=tmp_path, strict=True, summary=False, every_n_steps=1) as watch:
        for step in range(4):
            if step == 1:
                model.to(torch.float64)
                model[0].weight.register_hook(calls.append)
            model.zero_grad()
            model(torch.ones(2, 4).to(model[0].weight.dtype)).square().sum().backward()
            watch.step()
            called.append(len(calls))
    assert called == [0, 0, 1, 2]
    assert steps_of(numwatch.open_run(tmp_path), "0:grad_weight") == [0, 2, 3]
