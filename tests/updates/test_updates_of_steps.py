"""What is said of a step's updates, by the code that runs in training."""

import gc
import math
import weakref
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from update_runs import Holder, row_of, state_of, update_of, updates_watch, watched_steps

import numwatch
from numwatch.taps.parameters import Parameters

SIGMA = 0.02


def share_at_or_above(threshold):
    """P(|w| >= threshold) for w ~ N(0, SIGMA^2)."""
    return math.erfc(threshold / SIGMA / math.sqrt(2))


@pytest.mark.parametrize(
    ("dtype", "storage", "lr", "printed", "edq"),
    [
        # Facts, section 3, T2: swallowed and normalised EDQ.
        (torch.bfloat16, "bf16", 1e-3, 0.0, 0.986),
        (torch.bfloat16, "bf16", 1e-4, 0.118, 1.001),
        (torch.bfloat16, "bf16", 3e-5, 0.696, 0.309),
        (torch.bfloat16, "bf16", 1e-5, 0.845, 0.189),
        (torch.bfloat16, "bf16", 1e-6, 0.981, 0.028),
        (torch.float16, "fp16", 1e-4, 0.0, None),
        (torch.float16, "fp16", 1e-5, 0.118, None),
        (torch.float16, "fp16", 1e-6, 0.846, None),
    ],
)
@pytest.mark.parametrize("masters", [False, True])
def test_t2_swallowed_is_the_share_of_weights_above_the_power_of_two(
    dtype, storage, lr, printed, edq, masters
):
    n = 2_000_000
    w = (torch.randn(n) * SIGMA).to(dtype)
    signs = torch.where(torch.rand(n) < 0.5, 1.0, -1.0)
    holder = Holder(w.float() if masters else w)
    optimizer = torch.optim.SGD(holder.parameters(), lr=lr)
    (snapshot,) = watched_steps(
        holder, optimizer, [[signs.to(holder.inner.w.dtype)]], update_samples=None
    )
    update = update_of(snapshot, storage)
    steps = 256 if dtype is torch.bfloat16 else 2048
    exact = share_at_or_above(2.0 ** (math.floor(math.log2(steps * lr)) + 1))
    error = 4 * math.sqrt(exact * (1 - exact) / n) + 1e-6
    assert update.swallowed == pytest.approx(exact, abs=error)
    assert update.swallowed == pytest.approx(printed, abs=2e-3)
    if edq is not None:
        assert update.edq_normalised == pytest.approx(edq, abs=2e-3)
    assert (update.sampled, update.nonzero, update.numel) == (n, n, n)
    assert update.lost is not masters
    assert update.intended == ("applied" if masters else "exact")
    assert (update.deferred is None) is not masters


def test_fp32_weights_take_the_update_really_applied():
    w = torch.randn(40)
    holder = Holder(w.clone())
    optimizer = torch.optim.Adam(holder.parameters(), lr=1e-2)
    snapshots = watched_steps(holder, optimizer, [[torch.randn(40)] for _ in range(3)])
    before = w
    rerun = nn.Parameter(w.clone())
    again = torch.optim.Adam([rerun], lr=1e-2)
    torch.manual_seed(0)
    torch.randn(40)
    for snapshot in snapshots:
        rerun.grad = torch.randn(40)
        again.step()
        delta = (rerun.detach() - before).double().numpy()
        update = update_of(snapshot, "bf16")
        assert update.ratio == pytest.approx(
            float(np.linalg.norm(delta) / before.double().norm()), rel=1e-6
        )
        low = before.numpy().astype(ml_dtypes.bfloat16)
        moved = (low.astype(np.float32) + delta.astype(np.float32)).astype(ml_dtypes.bfloat16)
        assert update.swallowed == (moved == low).mean()
        copied = rerun.detach().numpy().astype(ml_dtypes.bfloat16)
        assert update.deferred == (copied == low).mean()
        row = row_of(snapshot, "inner.w:update")
        assert row.amax == float(np.abs(delta.astype(np.float32)).max())
        assert row.numel == 40
        before = rerun.detach().clone()


def test_bf16_weights_lose_what_did_not_arrive():
    w = torch.full((4,), 1.0).bfloat16()
    w[0] = 0.001
    holder = Holder(w)
    optimizer = torch.optim.SGD(holder.parameters(), lr=1e-3)
    gradient = torch.tensor([1.0, 1.0, 0.0, 5.0]).bfloat16()
    (snapshot,) = watched_steps(holder, optimizer, [[gradient]])
    update = update_of(snapshot, "bf16")
    # The third has no update. 0.001 is swallowed beside 1.0, 0.005 is more than half its spacing.
    assert update.nonzero == 3
    assert update.swallowed == pytest.approx(1 / 3)
    assert update.lost
    # An FP16 copy of 1.0 has eight times the places and keeps them all.
    assert update_of(snapshot, "fp16").swallowed == 0.0
    assert not update_of(snapshot, "fp16").lost


def test_master_weights_in_the_optimizer_defer_what_the_low_copy_does_not_show():
    class WithMasters(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    master = state.setdefault("master_param", p.detach().float())
                    master -= group["lr"] * p.grad.float()
                    p.copy_(master)

    holder = Holder(torch.ones(100, dtype=torch.bfloat16))
    optimizer = WithMasters(holder.parameters(), lr=1e-3)
    gradients = [[torch.ones(100, dtype=torch.bfloat16)] for _ in range(3)]
    _, second, third = watched_steps(holder, optimizer, gradients)
    for snapshot in (second, third):
        update = update_of(snapshot, "bf16")
        assert not update.lost
        assert update.intended == "applied"
        assert update.ratio == pytest.approx(1e-3, rel=1e-2)
    # 1 - 0.001 reads 1.0, 1 - 0.002 and 1 - 0.003 both read 0.99609375.
    assert update_of(second, "bf16").deferred == 0.0
    assert update_of(third, "bf16").deferred == 1.0


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_what_is_not_element_wise_is_an_estimate(name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    holder = Holder(torch.randn(8, 8).bfloat16())
    optimizer = getattr(torch.optim, name)(holder.parameters(), lr=1e-3)
    (snapshot,) = watched_steps(holder, optimizer, [[torch.randn(8, 8).bfloat16()]])
    assert {update.intended for update in snapshot.updates} == {"estimate"}
    assert update_of(snapshot, "bf16").lost


def test_where_no_intended_update_can_be_known_the_gradients_tell_what_stayed_put():
    w = torch.full((8,), 256.0).bfloat16()
    w[:2] = 0.0
    holder = Holder(w)
    optimizer = torch.optim.LBFGS(holder.parameters(), lr=1e-2, max_iter=1)
    watch = updates_watch(holder, optimizer, None)

    def closure():
        optimizer.zero_grad()
        holder.inner.w.grad = torch.tensor([1.0] * 6 + [0.0] * 2).bfloat16()
        return torch.tensor(1.0)

    watch.begin(0)
    optimizer.step(closure)
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    (update,) = snapshot.updates
    assert (update.storage, update.intended, update.lost) == ("bf16", "estimate", True)
    assert update.nonzero == 6
    assert update.swallowed == pytest.approx(4 / 6)
    assert update.edq is update.edq_normalised is update.stochastic_kept is None


def test_parameters_of_one_shape_do_not_mix():
    model = nn.ModuleDict({f"layer{i}": nn.Linear(4, 4, bias=False) for i in range(3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    gradients = [[torch.full((4, 4), 10.0**i) for i in range(3)]]
    weights = [p.detach().clone() for p in model.parameters()]
    (snapshot,) = watched_steps(model, optimizer, gradients)
    for i, weight in enumerate(weights):
        update = update_of(snapshot, "fp16", f"layer{i}.weight:update")
        assert update.ratio == pytest.approx(4 * 10.0**i / weight.norm().item(), rel=1e-5)


def test_globs_choose_parameters_by_module_or_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def slots(**globs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gradients = [[torch.ones_like(p) for p in model.parameters()]]
        (snapshot,) = watched_steps(model, optimizer, gradients, **globs)
        return {update.slot for update in snapshot.updates}

    every = {f"{i}.{name}:update" for i in (0, 1) for name in ("weight", "bias")}
    assert slots(include=None) == every
    assert slots(include=None, exclude=["1"]) == {"0.weight:update", "0.bias:update"}
    assert slots(include=None, exclude=["*.bias"]) == {"0.weight:update", "1.weight:update"}
    assert slots(include=["0"]) == {"0.weight:update", "0.bias:update"}
    assert slots(include=["0:grad_output"]) == set()
    assert slots(include=["*:update"]) == every
    assert slots(include=None, update_samples=0) == set()


def test_a_fused_step_that_was_skipped_is_no_update():
    holder = Holder(torch.ones(4))
    optimizer = torch.optim.AdamW(holder.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu")
    watch = updates_watch(holder, optimizer, scaler)
    for step, factor in enumerate((float("inf"), 1.0)):
        watch.begin(step)
        optimizer.zero_grad()
        scaler.scale(factor * holder.inner.w.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        watch.end()
    first, second = watch.collect(everything=True)
    assert first.scalars.skipped
    assert (first.updates, first.states) == ((), ())
    assert len(second.updates) == 4
    assert state_of(second, "exp_avg_sq").vanished == 0.0


def test_an_optimizer_that_prunes_within_its_step_ends_the_watching_and_not_the_run(tmp_path):
    class Pruning(torch.optim.Optimizer):
        def __init__(self, parameters) -> None:
            super().__init__(parameters, {})

        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.data = parameter.data[:2, :2].clone()
                parameter.grad = parameter.grad[:2, :2].clone()

    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    optimizer = Pruning(model.parameters())
    with numwatch.watch(model, optimizer, dir=tmp_path, summary=False, every_n_steps=1) as watch:
        model(torch.ones(2, 512)).sum().backward()
        with pytest.warns(RuntimeWarning, match="numwatch stopped watching"):
            optimizer.step()
        watch.step()
    assert model[0].weight.shape == (2, 2)


def test_names_follow_parameters_that_are_replaced_and_tell_foreign_ones_apart():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    foreign = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))]
    parameters = Parameters(model)

    def optimizer_of(parameter):
        parameter.grad = torch.ones_like(parameter)
        return torch.optim.SGD([parameter])

    def names(*given):
        return names_in(list(map(optimizer_of, given)))

    def names_in(optimizers):
        return [one.name for optimizer in optimizers for one in parameters.named(optimizer)]

    assert names(*model.parameters()) == ["a.weight", "b.weight"]
    for _ in range(20):  # ids are used again
        model["a"].weight = nn.Parameter(torch.zeros(2, 2))
        model["b"].weight = nn.Parameter(torch.zeros(2, 2))
        assert names(model["b"].weight, model["a"].weight) == ["b.weight", "a.weight"]
    outside = list(map(optimizer_of, foreign))
    assert names_in(outside) == ["outside_the_model.0", "outside_the_model.1"]
    assert names_in(outside[::-1]) == ["outside_the_model.1", "outside_the_model.0"]


class Hiding(nn.Module):
    """Names parameters of a module that it keeps out of torch's sight."""

    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(2, 2, bias=False)
        self.hidden = [nn.Linear(2, 2, bias=False)]

    def named_parameters(self, *args, **kwargs):
        yield from super().named_parameters(*args, **kwargs)
        yield "hidden.0.weight", self.hidden[0].weight


@pytest.mark.parametrize("given", [True, False])
def test_names_that_a_model_gives_itself_are_kept(given):
    model = Hiding()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = updates_watch(model, *([optimizer] if given else []), None)
    for step in range(2):
        watch.begin(step)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        watch.end()
    first, second = watch.collect(everything=True)
    watch.detach()
    for snapshot in (first, second):
        slots = {update.slot for update in snapshot.updates}
        assert slots == {"seen.weight:update", "hidden.0.weight:update"}


def test_frozen_unused_sparse_and_complex_parameters_are_passed_by():
    model = nn.ModuleDict(
        {
            "used": nn.Linear(2, 2, bias=False),
            "frozen": nn.Linear(2, 2, bias=False).requires_grad_(requires_grad=False),
            "unused": nn.Linear(2, 2, bias=False),
            "sparse": nn.Embedding(4, 2, sparse=True),
        }
    )
    model["complex"] = nn.Linear(2, 2, bias=False, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = updates_watch(model, optimizer, None)
    watch.begin(0)
    used = model["used"](torch.ones(1, 2)).sum() + model["sparse"](torch.tensor([1])).sum()
    (used + model["complex"](torch.ones(1, 2, dtype=torch.complex64)).abs().sum()).backward()
    optimizer.step()
    watch.end()
    (snapshot,) = watch.collect(everything=True)
    assert {update.slot for update in snapshot.updates} == {"used.weight:update"}


class Apart(torch.optim.AdamW):
    """torch's own step reads its step count on the host; that is not numwatch's doing."""

    def step(self, closure=None):
        with _disable_current_modes():
            return super().step(closure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_waits_for_the_device(no_sync, monkeypatch, dtype):
    holder = Holder(torch.randn(64).to(dtype))
    cls = Apart if dtype is torch.float32 else torch.optim.SGD
    optimizer = cls(holder.parameters(), lr=1e-3)
    monkeypatch.setattr("numwatch.taps.gate._disable_current_modes", nullcontext)
    watch = updates_watch(holder, optimizer, None)
    with no_sync():
        for step in range(2):
            watch.begin(step)
            holder.inner.w.grad = torch.randn(64).to(dtype)
            optimizer.step()
            watch.end()
    snapshots = watch.collect(everything=True)
    assert [len(snapshot.updates) for snapshot in snapshots] == [4, 4]
    watch.detach()


def test_no_sample_outlives_its_step():
    holder = Holder(torch.randn(64).bfloat16())
    optimizer = torch.optim.AdamW(holder.parameters(), lr=1e-3)
    watch = updates_watch(holder, optimizer, None)
    watch.begin(0)
    holder.inner.w.grad = torch.randn(64).bfloat16()
    optimizer.step()
    kept = [weakref.ref(t) for t in (holder.inner.w.grad, optimizer.state[holder.inner.w]["step"])]
    watch.end()
    holder.inner.w.grad = None
    optimizer.state.clear()
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_a_skipped_step_leaves_no_sample_behind():
    holder = Holder(torch.randn(64))
    optimizer = torch.optim.SGD(holder.parameters(), lr=1e-3)
    watch = updates_watch(holder, optimizer, None)
    for step in range(2):
        watch.begin(step)
        watch.end()
    assert [len(s.updates) for s in watch.collect(everything=True)] == [0, 0]
