import copy
import gc
import random
import weakref

import numpy as np
import pytest
import torch
from shadow_harness import Compared, Net, gradients_of, loss_on, same, state_of
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from numwatch.shadow import BUDGET, ShadowPass, ShadowStep
from numwatch.taps.fp32 import apart, copy_in_fp32
from numwatch.taps.selection import select

BATCH = (24, 16)


class Plain(nn.Module):
    """One call a module, dropout in between."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.dropout(torch.relu(self.norm(self.first(x)))))


def test_gradients_are_those_of_an_fp32_run_bit_for_bit():
    x = torch.randn(*BATCH, requires_grad=True)
    model = Plain().half()
    taps, slots = select(model)
    shadow = ShadowPass(model, taps)
    torch.manual_seed(7)
    samples = shadow.run(ShadowStep(loss_on(x)))
    torch.manual_seed(7)
    truth = gradients_of(copy.deepcopy(model).float(), loss_on(x))
    found = {slots[index].slot: kept for index, kept in samples.items()}
    assert found.keys() == truth.keys()
    for slot, (sample,) in found.items():
        assert sample.values.dtype == torch.float32
        assert torch.equal(sample.values.view(sample.shape), truth[slot]), slot


def test_a_shadow_changes_nothing():
    model = Net()
    loss_on(torch.randn(*BATCH))(model).backward()  # gradients from a micro-batch before
    watched = Compared(model)
    before, calls = state_of(model), model.calls
    watched.run_shadow(loss_on(torch.randn(*BATCH).requires_grad_()))
    assert watched.shadow.fault is None
    x = torch.randn(3)  # drawn as before the shadow
    torch.set_rng_state(before["rng"])
    assert same(before, state_of(model))
    assert model.calls == calls
    assert not torch.equal(x, torch.randn(3, generator=torch.Generator().manual_seed(12345)))


def test_global_settings_and_generators_are_as_before():
    def draw_and_set(model):
        torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002
        assert torch.get_default_dtype() == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        return model(torch.ones(2, 16)).sum()

    def settings():
        backends = torch.backends
        return (
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.fp32_precision if hasattr(backends.cudnn, "conv") else None,
        )

    def randomness():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    watched = Compared(Plain())
    torch.set_default_dtype(torch.float16)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            before = settings(), randomness()
            assert watched.run_shadow(draw_and_set)
            assert (settings(), randomness()) == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dropout_masks_are_the_runs(dtype):
    x = torch.randn(*BATCH)
    model = Net().to(dtype)
    watched = Compared(model)
    watched.run_shadow(loss_on(x.to(dtype)))
    loss_on(x.to(dtype))(model).backward()
    alike = watched.shadows()
    bound = 16 * torch.finfo(dtype).eps
    assert max(shadow.relative_error for shadow in alike.values()) < bound
    # The figure can tell: with other masks the gradients have little in common.
    watched.run_shadow(loss_on(x.to(dtype)))
    torch.rand(1)
    loss_on(x.to(dtype))(model).backward()
    assert watched.shadows()["head:grad_output"].relative_error > 0.3


def test_every_call_of_a_shared_module_is_compared():
    x = torch.randn(*BATCH)
    model = Net()
    watched = Compared(model)
    watched.run_shadow(loss_on(x))
    loss_on(x)(model).backward()
    shadows = watched.shadows()
    assert shadows["twice:grad_output"].sampled == 2 * 24 * 32
    assert shadows["twice:grad_weight"].sampled == 32 * 32
    assert all(shadow.relative_error == 0 for shadow in shadows.values())
    assert all(shadow.cosine == pytest.approx(1) for shadow in shadows.values())


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_flushed_gradients_of_an_fp16_step_are_counted(scale):
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4)).half()
    x = torch.randn(*BATCH)
    spread = torch.exp2(torch.randn(24, 4) * 4 - 24)
    watched = Compared(model, torch.tensor(scale))
    watched.run_shadow(lambda copied: (copied(x) * spread).sum())
    (model(x.half()) * (spread * scale).half()).sum().backward()
    shadow = watched.shadows()["1:grad_output"]
    flushed = ((spread * scale).half() == 0).sum()
    assert (shadow.sampled, shadow.flushed, shadow.zeros) == (96, int(flushed), 0)
    assert (shadow.flushed > 20) == (scale == 1.0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.Linear(32, 16))
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=reentrant))

    x = torch.randn(*BATCH, requires_grad=True)
    model = Checkpointed()
    watched = Compared(model)
    watched.run_shadow(loss_on(x))
    assert watched.shadow.fault is None
    assert x.grad is None
    loss_on(x)(model).backward()
    shadows = watched.shadows()
    assert {"inner.0:grad_output", "inner.2:grad_weight", "head:grad_input"} <= shadows.keys()
    assert all(shadow.relative_error == 0 for shadow in shadows.values())


def test_float8_linears_are_plain_in_the_shadow():
    float8 = pytest.importorskip("torchao.float8")
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False))
    x = torch.randn(16, 16, requires_grad=True)
    config = float8.Float8LinearConfig.from_recipe_name("tensorwise")
    model = float8.convert_to_float8_training(model, config=config).to(torch.bfloat16)
    twin = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False))
    twin.load_state_dict(model.state_dict())  # BF16 to FP32, exactly
    truth = gradients_of(twin, loss_on(x))
    watched = Compared(model)
    samples = watched.run_shadow(loss_on(x))
    assert watched.shadow.fault is None
    for index, (sample,) in samples.items():
        assert torch.equal(sample.values.view(sample.shape), truth[watched.slots[index].slot])
    assert type(model[0]).__name__ == "Float8Linear"


def test_copy_and_samples_are_freed_without_waiting_for_the_garbage_collector():
    model = Net()
    watched = Compared(model)
    storages, copies = [], []

    def loss_of(copied):
        tensors = (*copied.parameters(), *copied.buffers())
        storages.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors)
        copies.append(weakref.ref(copied))
        copied.itself = [copied]  # a cycle, as users' modules have them
        assert not any(storage.expired() for storage in storages)
        return loss_on(torch.randn(*BATCH))(copied)

    gc.disable()
    try:
        samples = watched.run_shadow(loss_of)
        assert all(storage.expired() for storage in storages)
        kept = [weakref.ref(sample.values) for each in samples.values() for sample in each]
        del samples
        loss_on(torch.randn(*BATCH))(model).backward()
        watched.comparison.clear()
        assert kept
        assert all(ref() is None for ref in kept)
    finally:
        gc.enable()
    gc.collect()
    assert copies[0]() is None


def test_gradients_of_the_copy_do_not_pile_up():
    met = []

    def loss_of(copied):
        # The first layer's gradient is the last to come.
        copied.first.weight.register_hook(lambda _: met.append(copied.head.weight.grad))
        return loss_on(torch.randn(*BATCH))(copied)

    assert Compared(Net()).run_shadow(loss_of)
    assert met == [None]


def test_samples_of_many_slots_stay_within_the_budget():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000)))
    taps, _ = select(model)
    slots = sum("grad" in role for tap in taps for role in tap.slots)
    assert ShadowPass(model, taps)._limit * slots <= BUDGET


def test_state_that_torch_refuses_to_copy():
    model = Net()
    model.history = [loss_on(torch.randn(*BATCH))(model)]  # a loss with its graph
    model.mask = torch.ones(32, dtype=torch.float16)
    copied = copy_in_fp32(model)
    assert copied.history[0].is_leaf
    assert torch.equal(copied.history[0], model.history[0])
    assert copied.mask.dtype == torch.float32
    assert model.mask.dtype == torch.float16


def test_copies_go_up_to_fp32_and_never_down():
    model = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2).half(), nn.Linear(2, 2))
    model.register_buffer("counter", torch.ones((), dtype=torch.int64))
    model[2].weight = model[1].weight
    copied = copy_in_fp32(model)
    assert [layer.bias.dtype for layer in copied] == [torch.float64, torch.float32, torch.float32]
    assert copied.counter.dtype == torch.int64
    assert copied[2].weight is copied[1].weight
    batch = copy_in_fp32({"x": torch.ones(2, dtype=torch.bfloat16), "y": torch.ones(2).long()})
    assert (batch["x"].dtype, batch["y"].dtype) == (torch.float32, torch.int64)


def test_tensors_from_elsewhere_keep_their_gradients():
    model, temperature = Net(), nn.Parameter(torch.ones(()))
    x = torch.randn(*BATCH, requires_grad=True)
    x.grad, temperature.grad = torch.ones(*BATCH), torch.ones(())
    fired = []
    temperature.register_post_accumulate_grad_hook(fired.append)
    watched = Compared(model)
    for loss_of in (loss_on(x), lambda copied: loss_on(x)(copied) * temperature):
        assert watched.run_shadow(loss_of)
    assert torch.equal(x.grad, torch.ones(*BATCH))
    assert torch.equal(temperature.grad, torch.ones(()))
    assert not fired


def test_stand_ins_are_found_wherever_the_model_refers_to_an_object():
    model = Net()
    model.trainer, stand_in = (i for i in range(3)), object()
    found = []
    Compared(model).run_shadow(
        lambda copied: found.append(copied.trainer), [(model.trainer, stand_in)]
    )
    assert found == [stand_in]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_models_run_eagerly():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    compiled = torch.compile(model, backend="eager")
    graphs = torch._dynamo.utils.counters["stats"]
    x = torch.randn(*BATCH)
    watched = Compared(model)
    with apart(model):
        pass
    before = graphs["unique_graphs"]
    watched.run_shadow(loss_on(x))
    watched.shadow = ShadowPass(compiled, select(compiled)[0])
    assert watched.run_shadow(loss_on(x))
    assert graphs["unique_graphs"] == before
    loss_on(x)(model).backward()
    assert all(shadow.relative_error == 0 for shadow in watched.shadows().values())
    torch._dynamo.reset()
