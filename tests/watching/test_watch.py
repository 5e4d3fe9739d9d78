import copy
import gc
import pickle
import warnings
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from numwatch import NumwatchError, tensor_stats
from numwatch.schedule import Schedule
from numwatch.taps.gate import Gate, Mode
from numwatch.watch import Watch

EVERY_STEP = Schedule(1, 0)


class Net(nn.Module):
    """Attention-like sharing of one input, a residual, in-place activation, dropout, embedding."""

    def __init__(self, use_reentrant=None):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, 20)
        self.use_reentrant = use_reentrant

    def block(self, x):
        n = self.norm(x)
        return x + self.drop(self.act(self.q(n)) * self.k(n) + self.v(n))

    def forward(self, tokens):
        x = self.embed(tokens)
        if self.use_reentrant is None:
            return self.head(self.block(x))
        return self.head(checkpoint(self.block, x, use_reentrant=self.use_reentrant))


def watch_of(model, optimizers=(), scaler=None, schedule=EVERY_STEP, **globs):
    watch = Watch(model, Gate(strict=True), schedule, **globs)
    watch.attach(optimizers, scaler)
    return watch


def train(model, steps=4, watch=None, scaler=None, dtype=None, accumulate=1):
    """Trains and returns the losses and final weights; watched where a watch is given."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if watch is not None:
        watch.attach([optimizer], scaler)
    losses = []
    for step in range(steps):
        if watch is not None:
            watch.begin(step)
        for _ in range(accumulate):
            tokens = torch.randint(0, 20, (8, 5))
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
                loss = loss / accumulate
            (scaler.scale(loss) if scaler else loss).backward()
            losses.append(loss.detach())
            if watch is not None:
                watch.add_loss(loss)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch.end(batch=step)
    return torch.stack(losses), copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
def test_watched_training_is_bitwise_the_bare_one(dtype, use_reentrant):
    def run(watched):
        torch.manual_seed(0)
        model = Net(use_reentrant)
        scaler = torch.amp.GradScaler("cpu") if dtype is torch.float16 else None
        watch = Watch(model, Gate(strict=True), Schedule(2, 1)) if watched else None
        return train(model, watch=watch, scaler=scaler, dtype=dtype)

    bare_losses, bare = run(watched=False)
    losses, weights = run(watched=True)
    assert torch.equal(losses, bare_losses)
    assert all(torch.equal(weights[name], bare[name]) for name in bare)


def test_weights_carry_hooks_on_recorded_steps_alone():
    model = Net()
    watch = watch_of(model, schedule=Schedule(2, 0))
    hooked = []
    for step in range(5):
        watch.begin(step)
        hooked.append([name for name, p in model.named_parameters() if p._backward_hooks])
        model(torch.randint(0, 20, (8, 5))).sum().backward()
        watch.end()
    watch.detach()
    assert hooked[0] == [f"{path}.weight" for path in ("q", "k", "v", "head")]
    assert hooked == [hooked[0], [], hooked[0], [], hooked[0]]
    rows = [{row.slot: row for row in s.rows} for s in watch.collect(everything=True) if s.rows]
    assert [row["q:grad_weight"].stats.numel for row in rows] == [16 * 16] * 3


def independent_rows(model, tokens, scale=1.0, dtype=None):
    """Every slot's tensors by module hooks of torch's own, independent of numwatch's taps."""
    model = copy.deepcopy(model)
    seen = {}

    def keep(name, tensors):
        for tensor in tensors:
            if tensor is not None and tensor.is_floating_point():
                seen.setdefault(name, []).append(tensor.detach().clone())

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            keep(f"{path}:weight", [module.weight])
            module.register_forward_hook(
                lambda _, args, out, path=path: (
                    (
                        keep(f"{path}:input", args),
                        keep(f"{path}:output", [out]),
                    )
                    and None
                )
            )
            module.register_full_backward_hook(
                lambda _, grad_in, grad_out, path=path: (
                    (
                        keep(f"{path}:grad_input", grad_in),
                        keep(f"{path}:grad_output", grad_out),
                    )
                    and None
                )
            )
        elif isinstance(module, (nn.Embedding, nn.LayerNorm)):
            module.register_forward_hook(
                lambda _, args, out, path=path: keep(f"{path}:output", [out])
            )
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        # A full backward hook forbids the in-place ReLU; out of place it computes the same.
        model.act.inplace = False
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    (loss * scale).backward()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            keep(f"{path}:grad_weight", [module.weight.grad])
    return seen


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_rows_equal_statistics_of_tensors_saved_by_independent_hooks(dtype):
    model = Net().eval()
    tokens = torch.randint(0, 20, (8, 5))
    scale = 2.0**12
    expected = independent_rows(model, tokens, scale, dtype)
    watch = watch_of(model)
    watch.begin(0)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    (loss * scale).backward()
    watch.end()
    (snapshot,) = watch.collect()
    rows = {row.slot: row.stats for row in snapshot.rows}
    assert rows.keys() == expected.keys()
    for slot, tensors in expected.items():
        (tensor,) = tensors
        ours, theirs = rows[slot].as_dict(), tensor_stats(tensor).as_dict()
        assert ours.pop("sum") == pytest.approx(theirs.pop("sum"), rel=1e-6, abs=1e-9), slot
        assert ours.pop("sumsq") == pytest.approx(theirs.pop("sumsq"), rel=1e-6), slot
        del ours["dtype"], theirs["dtype"]
        assert ours == theirs, slot


def test_grad_input_is_the_modules_share_not_the_sum_over_consumers():
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    nn.init.eye_(model["a"].weight)
    nn.init.zeros_(model["b"].weight)
    x = torch.ones(3, 4, requires_grad=True)
    watch = watch_of(model)
    watch.begin(0)
    (model["a"](x) + model["b"](x) + x).sum().backward()
    watch.end()
    rows = {row.slot: row.stats for row in watch.collect()[0].rows}
    assert (rows["a:grad_input"].sum, rows["b:grad_input"].zeros) == (12.0, 12)
    assert torch.equal(x.grad, torch.full((3, 4), 2.0))


def test_micro_batches_merge_into_one_row_and_one_loss():
    model = Net().eval()
    watch = Watch(model, Gate(strict=True), EVERY_STEP)
    losses, _ = train(model, steps=2, watch=watch, accumulate=3)
    snapshots = watch.collect()
    assert [s.step for s in snapshots] == [0, 1]
    rows = {row.slot: row.stats for row in snapshots[0].rows}
    assert rows["q:input"].numel == 3 * 8 * 5 * 16
    assert rows["q:grad_weight"].numel == 3 * 16 * 16
    assert rows["q:weight"].numel == 16 * 16
    assert snapshots[0].scalars.loss == pytest.approx(losses[:3].sum().item())


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
def test_recomputed_activations_are_counted_once(use_reentrant):
    plain, checkpointed = Net(), Net(use_reentrant)
    plain.drop.p = checkpointed.drop.p = 0.0
    checkpointed.load_state_dict(plain.state_dict())
    tokens = torch.randint(0, 20, (8, 5))
    found = []
    for model in (plain, checkpointed):
        watch = watch_of(model)
        watch.begin(0)
        model(tokens).square().mean().backward()
        watch.end()
        found.append({row.slot: row.stats for row in watch.collect()[0].rows})
    assert found[0] == found[1]


def test_gradients_are_in_the_scaled_domain_and_their_rows_keep_the_scale():
    model = Net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    watch = Watch(model, Gate(strict=True), EVERY_STEP, update_samples=0)
    tokens = torch.randint(0, 20, (8, 5))
    fp32 = independent_rows(model, tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch.attach([optimizer], scaler)
    watch.begin(0)
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    watch.end()
    for row in watch.collect()[0].rows:
        is_gradient = ":grad_" in row.slot
        assert row.loss_scale == (2.0**10 if is_gradient else 1.0)
        unscaled = row.stats.amax / row.loss_scale
        assert unscaled == pytest.approx(fp32[row.slot][0].abs().max().item(), rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scale_and_skips_are_those_of_the_scaler(fused):
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    watch = watch_of(model, [optimizer], scaler, Schedule(100, 0))
    expected = []
    for step in range(24):
        watch.begin(step)
        before, weight = scaler.get_scale(), model.head.weight.detach().clone()
        tokens = torch.randint(0, 20, (8, 5))
        with torch.autocast("cpu", dtype=torch.float16):
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        scaler.scale(loss * 64).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        watch.end()
        expected.append((before, scaler.get_scale(), torch.equal(weight, model.head.weight)))
    found = [
        (s.scalars.loss_scale_before, s.scalars.loss_scale_after, s.scalars.skipped)
        for s in watch.collect(everything=True)
    ]
    assert found == expected
    assert {skipped for *_, skipped in found} == {True, False}


def test_gradient_norm_is_unscaled():
    for fused in (False, True):
        torch.manual_seed(0)
        model = Net().eval()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused)
        watch = watch_of(model, [optimizer], scaler)
        watch.begin(0)
        loss = model(torch.arange(20)).square().mean()
        truth = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        watch.end()
        norm = watch.collect()[0].scalars.grad_norm
        assert norm == pytest.approx(nn.utils.get_total_norm(truth).item(), rel=1e-5)


def test_nan_loss_is_kept_as_nan():
    watch = watch_of(Net())
    watch.begin(0)
    watch.add_loss(torch.tensor(float("nan")))
    watch.end()
    loss = watch.collect(everything=True)[0].scalars.loss
    assert loss is not None
    assert loss != loss  # noqa: PLR0124


def test_cadence():
    modes = [Schedule(6, 2).mode(step) for step in range(7)]
    off, amax, full = Mode.OFF, Mode.AMAX, Mode.FULL
    assert modes == [full, off, amax, off, amax, off, full]
    assert Schedule(6, 0).mode(2) is off


@pytest.mark.parametrize(("full", "amax", "name"), [(0, 1, "every_n_steps"), (1, -1, "amax_every")])
def test_impossible_cadence_is_refused(full, amax, name):
    with pytest.raises(NumwatchError, match=f"{name}.* must be an integer of at least"):
        Schedule(full, amax)


def test_amax_rows_hold_amax_and_non_finites_alone():
    model = Net()
    with torch.no_grad():
        model.head.weight[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    watch = watch_of(model, schedule=Schedule(100, 1))
    watch.begin(1)
    model(torch.arange(20)).sum().backward()
    watch.end()
    rows = watch.collect()[0].rows
    assert not rows.full
    stats = {row.slot: row.stats for row in rows}["head:weight"]
    assert stats.amax == model.head.weight[1:].abs().max().item()
    assert (stats.nans, stats.posinfs, stats.neginfs) == (1, 1, 1)
    assert stats.binades == ()


def test_steps_between_recorded_ones_come_with_the_next_delivery():
    watch = watch_of(Net(), schedule=Schedule(1000, 0))
    for step in range(200):
        watch.begin(step)
        watch.end()
    arrived = watch.collect()
    arrived += watch.collect(everything=True)
    assert [s.step for s in arrived] == list(range(200))


def test_nothing_waits_for_the_device(no_sync, monkeypatch):
    model = Net()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # numwatch works outside the user's dispatch modes; here it must show itself to this one.
    monkeypatch.setattr("numwatch.taps.gate._disable_current_modes", nullcontext)
    for schedule in (Schedule(1, 0), Schedule(100, 1)):
        watch = watch_of(model, [optimizer], scaler, schedule)
        with no_sync():
            watch.begin(3)
            loss = model(torch.arange(20)).square().mean()
            scaler.scale(loss).backward()
            watch.before_optimizer_step(optimizer)
            watch.add_loss(loss)
            watch.end()
            watch.collect()
        watch.detach()


def test_nothing_of_the_users_is_kept_alive():
    model = Net()
    watch = watch_of(model)
    alive = []
    model.q.register_forward_hook(lambda _, args, out: alive.extend(map(weakref.ref, (*args, out))))
    watch.begin(0)
    model(torch.arange(20)).sum().backward()
    watch.end()
    watch.collect()
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    whole = weakref.ref(model)
    watch.detach()
    del model, watch
    gc.collect()
    assert whole() is None


def test_detach_takes_every_hook_off(count_hooks):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_of(model, [optimizer])
    assert count_hooks(model) > 0
    watch.detach()
    assert count_hooks(model) == 0
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_copies_of_a_watched_model_do_not_report():
    model = Net()
    watch = watch_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    watch.begin(0)
    for twin in copies:
        twin(torch.arange(20)).sum().backward()
    watch.end()
    rows = watch.collect()[0].rows
    assert {slot.split(":")[1] for slot in rows.slots} == {"weight"}


def break_collector(watch):
    def fail(*_):
        raise MemoryError("a test's")

    watch._collector.see = fail


def test_internal_error_ends_the_watching_with_one_warning_and_leaves_the_training_alone():
    def run(watched):
        torch.manual_seed(0)
        model = Net()
        watch = Watch(model, Gate(), EVERY_STEP, exclude=["*:weight"]) if watched else None
        if watch:
            break_collector(watch)
        return train(model, watch=watch)

    bare_losses, bare = run(watched=False)
    with pytest.warns(
        RuntimeWarning, match="numwatch stopped watching.*MemoryError: a test's"
    ) as w:
        losses, weights = run(watched=True)
    assert len(w) == 1
    assert torch.equal(losses, bare_losses)
    assert all(torch.equal(weights[name], bare[name]) for name in bare)


def test_strict_raises_internal_errors():
    model = Net()
    watch = watch_of(model)
    watch.begin(0)
    break_collector(watch)
    with pytest.raises(MemoryError, match="a test's"):
        model(torch.arange(20))


@pytest.mark.parametrize(("dtype", "format_name"), [(torch.float64, None), (torch.float32, "fp32")])
def test_fp64_is_watched_though_it_is_no_target(dtype, format_name):
    model = Net().to(dtype)
    watch = watch_of(model)
    watch.begin(0)
    model(torch.arange(20)).sum().backward()
    watch.end()
    assert len(watch.collect()[0].rows) == len(watch.slots)
    assert {slot.format for slot in watch.slots} == {format_name}


def test_gemm_slots_know_the_format_autocast_computes_in():
    model = Net()
    watch = watch_of(model)
    watch.begin(0)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model(torch.arange(20)).float().sum()
    loss.backward()
    watch.end()
    slots = {slot.slot: slot for slot in watch.slots}
    assert {slot.format for name, slot in slots.items() if name.startswith(("q", "head"))} == {
        "fp16"
    }
    assert slots["norm:output"].format == "fp32"
    # An FP32 input and the FP32 weight still have the tail that the cast to FP16 will flush.
    lost = {name: slot.rounded for name, slot in slots.items() if name.startswith("q:")}
    assert lost == {
        "q:input": False,
        "q:weight": False,
        "q:output": True,
        "q:grad_output": True,
        "q:grad_input": True,
        "q:grad_weight": True,
    }


def test_integers_are_passed_by():
    model = nn.ModuleDict({"flat": nn.Flatten()})
    watch = watch_of(model, include=["flat"])
    watch.begin(0)
    model["flat"](torch.arange(20).view(2, 10))
    watch.end()
    assert len(watch.collect()[0].rows) == 0
