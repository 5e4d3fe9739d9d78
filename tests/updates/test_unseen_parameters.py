"""Parameters that can not be measured for what their elements are: the report names them."""

import math

import pytest
import torch
from torch import nn
from update_runs import run_of, unseen

import numwatch
from numwatch.taps.norms import gradient_norm


class Mixed(nn.Module):
    """A sparse embedding, mixing in the frequency domain, and a head."""

    def __init__(self):
        super().__init__()
        self.phases = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.table = nn.Embedding(8, 4, sparse=True)
        self.mixer = nn.Linear(3, 3, dtype=torch.complex64)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        x = self.table(x.argmax(1) % 8)
        return self.head(torch.fft.irfft(self.mixer(torch.fft.rfft(x) * self.phases), n=4))


def test_sparse_and_complex_parameters_are_named(tmp_path):
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    run = run_of(tmp_path, model, optimizer, step)
    assert sorted(unseen(run)) == [
        "complex numbers: phases and 2 more have no rows, updates or part in the gradient norm",
        "sparse gradients: table.weight has no updates or state",
    ]
    assert set(run.updates()["slot"].to_pylist()) == {"head.weight:update", "head.bias:update"}
    assert run.precision == "float32 weights"


@pytest.mark.parametrize("given", [True, False])
def test_they_are_known_when_gradients_are_cleared_before_the_step_ends(tmp_path, given):
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, x):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    notes = sorted(unseen(run_of(tmp_path, model, optimizer if given else None, step)))
    assert [note.split(":")[0] for note in notes] == ["complex numbers", "sparse gradients"]


def test_a_sparse_gradient_is_in_the_norm(tmp_path):
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, _):
        loss = model(torch.tensor([1, 1, 2])).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    norms = run_of(tmp_path, model, optimizer, step).steps()["grad_norm"].to_pylist()
    assert norms == pytest.approx([math.sqrt(4 * 2**2 + 4)] * len(norms))


def test_what_was_excluded_is_not_missed(tmp_path):
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"exclude": ["table*", "phases", "mixer*"], "every_n_steps": 1, "summary": False}
    with numwatch.watch(model, optimizer, dir=tmp_path, strict=True, **options) as watch:
        for _ in range(2):
            loss = model(torch.randn(4, 8)).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
            optimizer.zero_grad()
    run = numwatch.open_run(tmp_path)
    assert unseen(run) == []
    assert all(math.isfinite(norm) for norm in run.steps()["grad_norm"].to_pylist())


@pytest.mark.parametrize(("device", "known"), [("cpu", True), ("meta", False)])
def test_a_norm_that_a_device_would_have_to_be_waited_for_is_not_made(device, known):
    """The device without memory stands for a GPU, which a sparse gradient's duplicates stop."""
    weight, bias = (nn.Parameter(torch.zeros(3, 2, device=device)) for _ in range(2))
    at = torch.zeros(1, 2, dtype=torch.int64, device=device)
    weight.grad = torch.sparse_coo_tensor(
        at, torch.ones(2, 2, device=device), (3, 2), check_invariants=False
    )
    bias.grad = torch.ones(3, 2, device=device)
    norm = gradient_norm(torch.optim.SGD([bias, weight]))
    assert (norm is not None) is known
    assert norm is None or float(norm) == pytest.approx(14**0.5)
