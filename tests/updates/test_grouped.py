"""Updates and state of many parameters at once: by loops as by torch's operations."""

import math

import pytest
import torch
from torch import nn
from update_runs import watched_steps

from numwatch.stats import finite, kernels, moments, packing, updates

SHAPES = ((3, 4), (12,), (3, 4), (40, 30), (7,), (30, 40), (4, 3))


class Masters(torch.optim.Optimizer):
    """SGD on FP32 copies that it keeps in its state."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                master = self.state[p].setdefault("master_param", p.detach().float().clone())
                master -= group["lr"] * p.grad.float()
                p.copy_(master)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4),
    "masters": lambda p: Masters(p, lr=0.01),
}
DTYPES = {
    "fp32": (torch.float32,),
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
    "fp64": (torch.float64,),
    "mixed": (torch.float32, torch.bfloat16, torch.float16),
}


def snapshots_of(make, dtypes, limit):
    torch.manual_seed(0)
    model = nn.ModuleDict({f"m{i}": nn.Module() for i in range(len(SHAPES))})
    for i, shape in enumerate(SHAPES):
        weights = (torch.randn(shape) * 0.02).to(dtypes[i % len(dtypes)])
        # One of them lies in memory the other way round.
        model[f"m{i}"].w = nn.Parameter(weights if i != 3 else weights.mT.contiguous().mT)
    gradients = [[torch.randn(p.shape).to(p.dtype) for p in model.parameters()] for _ in range(3)]
    gradients[1][4] = None
    gradients[2][1][5] = 0.0
    gradients[2][5][0, 0] = math.inf
    return watched_steps(model, make(model.parameters()), gradients, update_samples=limit)


def without_loops(monkeypatch):
    for module in (packing, moments, updates, finite):
        monkeypatch.setattr(module, "has_loops", lambda: False)
    monkeypatch.setattr(kernels, "_all_compiled", lambda *_, **__: False)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("limit", [None, 100])
def test_the_loops_say_what_torch_s_operations_do(monkeypatch, name, dtypes, limit):
    if name == "masters" and dtypes in ("fp32", "fp64"):
        pytest.skip("FP32 weights need no masters")
    make = OPTIMIZERS[name]
    found = snapshots_of(make, DTYPES[dtypes], limit)
    without_loops(monkeypatch)
    expected = snapshots_of(make, DTYPES[dtypes], limit)
    for own, other in zip(found, expected, strict=True):
        assert_same(own.updates, other.updates)
        assert_same(own.states, other.states)
        assert own.rows.slots == other.rows.slots
        assert (own.rows.counts == other.rows.counts).all()
        assert own.rows.reals == pytest.approx(other.rows.reals, rel=1e-9)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        own, other = vars(own), vars(other)  # noqa: PLW2901
        for key, value in other.items():
            if isinstance(value, float):
                assert own[key] == pytest.approx(value, rel=1e-6, abs=1e-12), (key, own)
            else:
                assert own[key] == value, (key, own)


def test_who_has_no_gradient_is_left_out_and_the_others_keep_their_rows():
    first, second, _ = snapshots_of(OPTIMIZERS["adamw"], DTYPES["fp32"], None)
    assert len(first.updates) == 4 * len(SHAPES)
    assert {u.slot for u in first.updates} - {u.slot for u in second.updates} == {"m4.w:update"}
    rows = {row.slot: row.stats for row in second.rows}
    assert "m4.w:exp_avg" not in rows
    for update in second.updates:
        assert rows[update.slot].numel == update.sampled


def test_parameters_of_one_size_and_different_shapes_stand_together_and_apart():
    # 3 x 4, 12 and 4 x 3 have a size; 40 x 30 and 30 x 40 have it with strides of their own.
    (snapshot, *_) = snapshots_of(OPTIMIZERS["sgd"], DTYPES["fp32"], 100)
    sampled = {update.slot: update.sampled for update in snapshot.updates}
    assert sampled["m0.w:update"] == sampled["m1.w:update"] == sampled["m6.w:update"] == 12
    assert sampled["m3.w:update"] == sampled["m5.w:update"] <= 100
