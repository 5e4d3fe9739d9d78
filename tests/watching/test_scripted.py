"""Modules of `torch.jit` take no hooks: their weights are seen, and the rest is said not to be."""

import pytest
import torch
from torch import nn

import numwatch

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.register_buffer("offset", torch.zeros(8))

    def forward(self, x):
        return torch.relu(self.norm(self.linear(x)) + self.offset)


def script_of(module):
    return torch.jit.script(module)


def trace_of(module):
    return torch.jit.trace(module, torch.ones(2, 8))


def trained(make, directory=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), make(Block()), nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    options = {"summary": False, "strict": True, "every_n_steps": 1}
    watch = numwatch.watch(model, optimizer, dir=directory, **options) if directory else None
    if watch:
        watch.__enter__()
    for _ in range(3):
        x = torch.randn(4, 8)
        if watch:
            watch.shadow(lambda model, x=x: model(x).square().mean(), batch=x)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watch:
            watch.step(loss=loss)
    if watch:
        watch.__exit__(None, None, None)
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("make", [script_of, trace_of])
def test_what_is_around_them_is_watched_and_they_by_their_weights(make, tmp_path):
    assert all(map(torch.equal, trained(make, tmp_path), trained(make)))
    run = numwatch.open_run(tmp_path)
    seen = set(run.slots)
    assert {"0:output", "2:grad_output", "1.linear:weight", "1.linear.weight:update"} <= seen
    assert not any(name.startswith("1.") and name.endswith("put") for name in seen)
    for slot in ("2:grad_output", "1.linear:grad_weight", "1.linear:weight"):
        assert run.tensors(slot=slot)["step"].to_pylist() == [0, 1, 2]
    (note,) = [event["note"] for event in run.events() if event["kind"] == "unseen"]
    assert note == "activations and their gradients inside 1: torch.jit takes no hooks"


@pytest.mark.parametrize("make", [script_of, trace_of])
def test_a_model_that_is_one_whole_is_told_of(make, tmp_path):
    model = make(Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"summary": False, "strict": True, "every_n_steps": 1}
    with numwatch.watch(model, optimizer, dir=tmp_path, **options) as watch:
        loss = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        watch.step(loss=loss)
    run = numwatch.open_run(tmp_path)
    assert run.updates().num_rows
    (note,) = [event["note"] for event in run.events() if event["kind"] == "unseen"]
    assert "inside the model" in note
