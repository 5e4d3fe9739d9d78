"""What is said of an optimizer's state, against what the optimizers really do."""

import math

import pytest
import torch
from torch import nn
from update_runs import Holder, row_of, state_of, update_of, watched_steps


def test_fp16_adam_names_its_eps_and_its_flushed_squares_before_the_weights_are_lost():
    # Facts, section 3: eps 1e-8 is 0 in FP16, g^2 is 0 for |g| <= 2^-12.5: -inf on step 1.
    gradient = torch.full((8,), 2.0**-13).half()
    gradient[0] = 2.0**-6
    holder = Holder(torch.ones(8, dtype=torch.float16))
    optimizer = torch.optim.Adam(holder.parameters(), lr=1e-3)
    (snapshot,) = watched_steps(holder, optimizer, [[gradient]])
    state = state_of(snapshot, "exp_avg_sq")
    assert (state.dtype, state.eps, state.eps_stored) == ("float16", 1e-8, 0.0)
    assert state.vanished == 7 / 8
    assert state.below_eps == 7 / 8
    row = row_of(snapshot, "inner.w:exp_avg_sq")
    assert (row.zeros, row.numel) == (7, 8)
    assert torch.isinf(holder.inner.w).sum() == 7


def test_bf16_adam_never_forgets():
    # Facts, section 3: lr 1e-3, w = 1.0, 1000 steps: w stays 1.0, v stalls at 3.05e-5.
    holder = Holder(torch.ones(1, dtype=torch.bfloat16))
    optimizer = torch.optim.Adam(holder.parameters(), lr=1e-3)
    gradient = torch.full((1,), 0.01).bfloat16()
    for _ in range(1000):
        holder.inner.w.grad = gradient.clone()
        optimizer.step()
    (snapshot,) = watched_steps(holder, optimizer, [[gradient]])
    state = state_of(snapshot, "exp_avg_sq")
    assert state.decay == 0.999
    assert state.decay_stored == 1.0
    assert state_of(snapshot, "exp_avg").decay == 0.9
    assert state_of(snapshot, "exp_avg").decay_stored == pytest.approx(0.8984375)
    assert row_of(snapshot, "inner.w:exp_avg_sq").amax == pytest.approx(3.05e-5, rel=1e-2)
    update = update_of(snapshot, "bf16")
    assert holder.inner.w.item() == 1.0
    assert update.swallowed == 1.0
    assert update.lost


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_rms_is_wortsman_s_with_the_corrected_moment(cls):
    holder = Holder(torch.randn(50))
    optimizer = cls(holder.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-3)
    gradients = [torch.randn(50) * 10.0 ** (step - 2) for step in range(4)]
    snapshots = watched_steps(holder, optimizer, [[g.clone()] for g in gradients])
    v = torch.zeros(50, dtype=torch.float64)
    for step, (snapshot, g) in enumerate(zip(snapshots, gradients, strict=True), start=1):
        v = 0.99 * v + 0.01 * g.double() ** 2
        corrected = v / (1 - 0.99**step)
        rms = (g.double() ** 2 / corrected.clamp(min=1e-6)).mean().sqrt().item()
        state = state_of(snapshot, "exp_avg_sq")
        assert state.rms == pytest.approx(rms, rel=1e-4)
        assert state.below_eps == (corrected.sqrt() < 1e-3).double().mean().item()
        assert state.vanished == 0.0
    # The first corrected moment is the square itself.
    assert state_of(snapshots[0], "exp_avg_sq").rms == pytest.approx(
        (gradients[0].double() ** 2 / gradients[0].double().square().clamp(min=1e-6))
        .mean()
        .sqrt()
        .item(),
        rel=1e-4,
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), {}),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.75), {"momentum_buffer": (0.75, None)}),
        (
            lambda p: torch.optim.Adam(p, amsgrad=True),
            {"exp_avg": (0.9, None), "exp_avg_sq": (0.999, None), "max_exp_avg_sq": (None, 1e-8)},
        ),
        (
            torch.optim.Adamax,
            {"exp_avg": (0.9, None), "exp_inf": (0.999, None)},
        ),
        (lambda p: torch.optim.RMSprop(p, alpha=0.5), {"square_avg": (0.5, 1e-8)}),
        (torch.optim.Adagrad, {"sum": (None, 1e-10)}),
        (
            lambda p: torch.optim.RMSprop(p, alpha=0.5, centered=True),
            {"square_avg": (0.5, None), "grad_avg": (None, None)},
        ),
        (
            lambda p: torch.optim.Adadelta(p, rho=0.5),
            {"square_avg": (0.5, None), "acc_delta": (0.5, None)},
        ),
    ],
)
def test_what_each_of_torch_s_optimizers_keeps(make, expected):
    holder = Holder(torch.randn(6))
    (snapshot,) = watched_steps(holder, make(holder.parameters()), [[torch.randn(6)]])
    found = {state.slot.rpartition(":")[2]: (state.decay, state.eps) for state in snapshot.states}
    assert found == expected
    for key in expected:
        assert row_of(snapshot, f"inner.w:{key}").numel == 6


def test_rmsprop_and_adagrad_divide_by_the_uncorrected_moment():
    gradient = torch.tensor([1.0, 2.0])
    for make, v in (
        (lambda p: torch.optim.RMSprop(p, alpha=0.75), 0.25),
        (torch.optim.Adagrad, 1.0),
    ):
        holder = Holder(torch.zeros(2))
        (snapshot,) = watched_steps(holder, make(holder.parameters()), [[gradient.clone()]])
        state = next(state for state in snapshot.states if state.eps is not None)
        assert state.rms == pytest.approx(1 / math.sqrt(v))


def test_what_never_had_a_gradient_is_not_below_eps():
    holder = Holder(torch.randn(4))
    optimizer = torch.optim.Adam(holder.parameters(), eps=1e-3)
    gradient = torch.tensor([0.0, 0.0, 1e-4, 1.0])
    (snapshot,) = watched_steps(holder, optimizer, [[gradient]])
    state = state_of(snapshot, "exp_avg_sq")
    assert state.below_eps == 1 / 2
    assert state.vanished == 0.0
    assert state.sampled == 4


def test_state_of_a_large_parameter_is_sampled_and_says_so():
    holder = Holder(torch.randn(300, 300))
    optimizer = torch.optim.AdamW(holder.parameters())
    (snapshot,) = watched_steps(holder, optimizer, [[torch.randn(300, 300)]], update_samples=1000)
    assert 900 <= state_of(snapshot, "exp_avg_sq").sampled <= 1000
    update = update_of(snapshot, "bf16")
    assert update.sampled == state_of(snapshot, "exp_avg").sampled
    assert update.numel == 90_000


def test_learning_rates_and_betas_may_be_tensors():
    holder = Holder(torch.randn(6))
    optimizer = torch.optim.AdamW(
        holder.parameters(), lr=torch.tensor(1e-3), betas=(0.9, 0.999), capturable=False
    )
    (snapshot,) = watched_steps(holder, optimizer, [[torch.randn(6)]])
    assert update_of(snapshot, "bf16").nonzero == 6


def test_every_dtype_of_state_is_named():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients = [[torch.ones(2, 2), torch.ones(2, 2).half()]]
    (snapshot,) = watched_steps(model, optimizer, gradients)
    assert state_of(snapshot, "momentum_buffer", "a.weight").dtype == "float32"
    assert state_of(snapshot, "momentum_buffer", "b.weight").dtype == "float16"
