"""No step waits for the device: on a CPU, nothing reads a tensor's numbers into Python."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

import numwatch
from numwatch.schedule import Schedule
from numwatch.stats import block_kernel, moments, packing, reference, updates
from numwatch.taps.collector import Collector
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

METHODS = (
    *("item", "tolist", "cpu", "numpy", "nonzero", "equal", "allclose", "masked_select", "unique"),
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__"),
)
FUNCTIONS = ("is_nonzero", "nonzero", "equal", "allclose", "masked_select", "unique")


@contextmanager
def no_reads(allowed=()):
    """Fails on every call that would make the host wait for a device, in backward's hooks too.

    No mode of torch's would do: numwatch puts dispatch modes aside, and hooks see no others.
    """

    def refusing(name):
        def refuse(*_args, **_kwargs):
            raise AssertionError(f"{name} waits for the device")

        return refuse

    getitem = torch.Tensor.__getitem__

    def getitem_unless_by_mask(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(one, torch.Tensor) and one.dtype is torch.bool for one in keys):
            raise AssertionError("a mask's length waits for the device")
        return getitem(self, key)

    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            if name not in allowed:
                patch.setattr(torch.Tensor, name, refusing(name))
        for name in FUNCTIONS:
            patch.setattr(torch, name, refusing(name))
        patch.setattr(torch.Tensor, "__getitem__", getitem_unless_by_mask)
        yield


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, tokens):
        x = self.norm(self.conv(self.embed(tokens).mT).mT)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Scaler(torch.amp.GradScaler):
    """A real scaler that trusts its gradients: the real `step` reads whether one is inf."""

    def _maybe_opt_step(self, optimizer, state, *args, **kwargs):
        return optimizer.step(*args, **kwargs)


def fused_adam(model):
    """The others read their step count on the host."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def step_of(model, optimizer, scaler):
    tokens = torch.randint(0, 20, (4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    return loss.detach()


def train(watch, model, optimizer, scaler, steps=4):
    """Trains under `no_reads`; what is read is what has arrived, between the steps."""
    for step in range(steps):
        with no_reads():
            watch.begin(step)
            watch.add_loss(step_of(model, optimizer, scaler))
            watch.before_optimizer_step(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watch.end()
        yield from watch.collect()


@pytest.fixture
def parts(monkeypatch):
    # The kernels of devices: numba's read a CPU's memory in place.
    monkeypatch.setattr("numwatch.stats.kernels._kernel", lambda _x, **_: reference)
    monkeypatch.setattr("numwatch.stats.kernels._all_compiled", lambda _dtypes, **_: False)
    monkeypatch.setattr(
        "numwatch.stats.block_kernel._cpu_sweep", lambda _x: block_kernel._reference
    )
    for module in (updates, moments, packing):
        monkeypatch.setattr(module, "by_loops", module.by_operations)
    monkeypatch.setattr("numwatch.taps.collector.row_writer", lambda *_, **__: None)
    model = Net()
    optimizer, scaler = fused_adam(model), Scaler("cpu")
    watch = Watch(model, Gate(strict=True), Schedule(2, 1))
    watch.attach([optimizer], scaler)
    yield watch, model, optimizer, scaler
    watch.detach()


def test_no_kind_of_step_waits(parts):
    snapshots = list(train(*parts))
    assert [s.rows.full for s in snapshots] == [True, False, True, False]
    assert snapshots[0].updates
    assert snapshots[0].blocks


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.abs().max().item(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x.sum()),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: torch.nonzero(x),  # noqa: PLW0108  # the one there is then
    ],
)
@pytest.mark.parametrize("role", ["input", "output", "grad_output", "grad_weight"])
def test_a_planted_wait_is_found(parts, monkeypatch, read, role):
    see = Collector.see

    def reading(self, index, tensor, *rest):
        if self.table.slots[index].role == role:
            read(tensor)
        return see(self, index, tensor, *rest)

    monkeypatch.setattr(Collector, "see", reading)
    with pytest.raises(AssertionError, match="waits for the device"):
        list(train(*parts))


def test_a_plain_loop_reads_nothing_but_what_has_arrived(tmp_path):
    """The whole session, its record written; `numpy` is how arrived rows are read.

    Without the readiness for failed steps: a loss on a CPU is read there at once.
    """
    model = Net()
    optimizer, scaler = fused_adam(model), Scaler("cpu")
    with numwatch.watch(
        model,
        optimizer,
        scaler=scaler,
        dir=tmp_path,
        every_n_steps=2,
        amax_every_n_steps=1,
        summary=False,
        strict=True,
        origin=False,
        capsule_gb=0,
    ) as watch:
        for i in range(6):
            # The first step rounds eps and betas, which are Python's, to their storage.
            guard = no_reads(allowed=("numpy", "tolist", "__array__")) if i else nullcontext()
            with guard:
                loss = step_of(model, optimizer, scaler)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                watch.step(loss=loss)
    assert numwatch.open_run(tmp_path).tensors().num_rows > 0
