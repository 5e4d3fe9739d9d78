"""Training under the audit is bitwise the training without it, and nothing of it stays behind."""

import gc
import threading
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from versions import SCALED_MM

import numwatch
from numwatch.taps.gate import Gate
from numwatch.taps.operations import Notes
from numwatch.watch import Watch


@pytest.fixture(autouse=True)
def _nothing_compiled_and_no_mode_left(monkeypatch):
    monkeypatch.setattr("torch._dynamo.eval_frame.cached_backends", {})
    assert torch._C._len_torch_dispatch_stack() == 0
    yield
    assert torch._C._len_torch_dispatch_stack() == 0


class Block(nn.Module):
    def __init__(self, width=16, heads=2, *, checkpointed=None):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.2)
        self.heads, self.checkpointed = heads, checkpointed

    def attend(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1)
        return self.drop(self.out(y.transpose(1, 2).flatten(-2)))

    def forward(self, x):
        if self.checkpointed is None:
            return x + self.attend(x)
        return x + checkpoint(self.attend, x, use_reentrant=self.checkpointed)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def mlp():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 4, bias=False))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


def transformer(**arguments):
    return nn.Sequential(nn.Linear(16, 16), Block(**arguments), Block(), nn.Linear(16, 4))


def float8():
    torchao = pytest.importorskip("torchao.float8")
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).bfloat16()
    config = torchao.Float8LinearConfig(emulate=not SCALED_MM)
    return torchao.convert_to_float8_training(model, config=config)


MODELS = {
    "mlp": (mlp, (8, 16)),
    "cnn": (cnn, (4, 3, 8, 8)),
    "transformer": (transformer, (4, 6, 16)),
    "checkpoint": (lambda: transformer(checkpointed=False), (4, 6, 16)),
    "reentrant": (lambda: transformer(checkpointed=True), (4, 6, 16)),
    "lstm": (Recurrent, (4, 6, 16)),
    "float8": (float8, (16, 16)),
}


def train(name, directory, *, autocast=None, scaled=False, parts=1, steps=3, **arguments):
    """Trains with AdamW; returns all losses and the final state, and the run where watched."""
    torch.manual_seed(1)
    make, shape = MODELS[name]
    model = make()
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    watch = nullcontext()
    if directory is not None:
        watch = numwatch.watch(
            model,
            optimizer,
            scaler=scaler,
            dir=directory,
            summary=False,
            **{"strict": True, **arguments},
        )
    losses = []
    with watch:
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(parts):
                x = torch.randn(shape, dtype=dtype)
                with torch.autocast("cpu", autocast) if autocast else nullcontext():
                    loss = model(x).float().square().mean() / parts
                (scaler.scale(loss) if scaler else loss).backward()
                losses.append(loss.detach())
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            if directory is not None:
                watch.step(loss)
    return losses, model.state_dict()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, {}) for name in MODELS]
    + [
        ("transformer", {"autocast": torch.float16, "scaled": True}),
        ("cnn", {"autocast": torch.float16, "scaled": True, "parts": 2}),
        ("transformer", {"autocast": torch.bfloat16}),
        ("mlp", {"parts": 3}),
    ],
    ids=str,
)
def test_training_is_bitwise_the_same(name, arguments, tmp_path):
    bare = train(name, None, **arguments)
    watched = train(name, tmp_path, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(bare[0], watched[0], strict=True))
    assert all(torch.equal(bare[1][key], watched[1][key]) for key in bare[1])
    run = numwatch.open_run(tmp_path)
    steps = run.operations()["step"].unique().to_pylist()
    assert steps == [0]
    assert "audit" not in [event["kind"] for event in run.events()]


def test_it_can_be_switched_off(tmp_path):
    train("mlp", tmp_path, audit=False)
    run = numwatch.open_run(tmp_path)
    assert run.operations().num_rows == 0
    assert "audit" not in [event["kind"] for event in run.events()]


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def stack():
    size = torch._C._len_torch_dispatch_stack()
    return [torch._C._get_dispatch_stack_at(i) for i in range(size)]


def watched(model, optimizer=None):
    gate = Gate(strict=True)
    watch = Watch(model, gate, audit=True)
    watch.attach([] if optimizer is None else [optimizer])
    return watch, gate


def operations(watch):
    return [op for snapshot in watch.collect(everything=True) for op in snapshot.operations]


def test_it_stays_underneath_the_users_own_mode_entered_before():
    model = mlp()
    watch, gate = watched(model)
    with Count() as count:
        with gate.watching():
            watch.begin(0)
        assert stack()[-1] is count
        assert len(stack()) == 2
        model(torch.randn(2, 16)).sum().backward()
    assert len(stack()) == 1  # theirs went, not ours
    with gate.watching():
        watch.end()
    assert "mm" in count.names
    assert not {"abs", "amax"} & set(count.names)  # numwatch's are not the user's
    assert any(op.operation == "aten.addmm.default" for op in operations(watch))
    watch.detach()


def test_it_goes_from_below_a_mode_that_the_user_leaves_later():
    model = mlp()
    watch, gate = watched(model)
    with gate.watching():
        watch.begin(0)
    with Count() as count:
        model(torch.randn(2, 16)).sum().backward()
        with gate.watching():
            watch.end()
        assert stack() == [count]
    assert stack() == []
    assert operations(watch)
    watch.detach()


@pytest.mark.parametrize("end", ["pause", "detach"])
def test_it_ends_with_the_hooks(end, count_hooks):
    model = mlp()
    watch, gate = watched(model)
    watch.begin(0)
    assert len(stack()) == 1
    with gate.watching():
        getattr(watch, end)()
        assert stack() == []  # put aside
    assert stack() == []
    watch.detach()
    assert count_hooks(model) == 0


@contextmanager
def _raising(model):
    def fail(*_):
        raise ZeroDivisionError

    handle = model[2].register_forward_pre_hook(fail)
    yield
    handle.remove()


def test_a_step_that_raises_leaves_no_mode(tmp_path, count_hooks):
    model = mlp()
    with (
        _raising(model),
        pytest.raises(ZeroDivisionError),
        numwatch.watch(model, dir=tmp_path, summary=False, strict=True),
    ):
        model(torch.randn(2, 16))
    assert stack() == []
    assert count_hooks(model) == 0


def test_an_error_on_another_thread_of_autograd_is_settled_on_this_one(tmp_path, count_hooks):
    model = mlp()
    watch = numwatch.watch(model, dir=tmp_path, summary=False)

    def fail():
        with (
            pytest.warns(RuntimeWarning, match="stopped watching"),
            watch._session._gate.watching(),
        ):
            raise ZeroDivisionError

    with watch:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        assert len(stack()) == 1  # idle, until numwatch is called on this thread
        assert count_hooks(model) == 0
        model(torch.randn(2, 16)).sum().backward()
        watch.step()
        assert stack() == []


def test_an_error_inside_harms_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("inside")

    bare = train("transformer", None)
    monkeypatch.setattr(Notes, "note", fail)
    with pytest.warns(RuntimeWarning, match="numwatch stopped watching.*inside"):
        model_of_watched = train("transformer", tmp_path, strict=False)
    assert all(torch.equal(bare[1][key], model_of_watched[1][key]) for key in bare[1])


def test_nothing_of_the_users_is_kept_alive():
    model = mlp()
    watch, gate = watched(model)
    kept = []
    model[0].register_forward_hook(lambda _, args, out: kept.extend(map(weakref.ref, (*args, out))))
    watch.begin(0)
    loss = model(torch.randn(2, 16).half().float()).square().sum()
    loss.backward()
    del loss
    gc.collect()
    assert len(kept) == 2
    assert all(ref() is None for ref in kept)
    with gate.watching():
        watch.end()
    watch.detach()


def test_nothing_waits_for_the_device(no_sync, monkeypatch):
    # Ours goes on top, and what it computes passes through the mode that forbids to wait.
    monkeypatch.setattr("numwatch.taps.audit._disable_current_modes", nullcontext)
    monkeypatch.setattr("numwatch.taps.gate._disable_current_modes", nullcontext)
    model = mlp().half()
    watch, _gate = watched(model)
    with no_sync():
        watch.begin(0)
        x = model(torch.randn(2, 16).half())
        x.exp().sum().backward()
        watch.end()
    measured = [op for op in operations(watch) if op.amax is not None]
    assert [op.operation for op in measured if op.phase == "forward"] == [
        "aten.exp.default",
        "aten.sum.default",
    ]
    watch.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dynamo's own, of a graph that numwatch's hooks break
def test_a_compiled_model_is_left_alone_and_an_event_says_why(tmp_path):
    model = torch.compile(mlp(), backend="eager")
    with numwatch.watch(model, dir=tmp_path, summary=False, strict=True) as watch:
        assert stack() == []
        model(torch.randn(2, 16)).sum().backward()
        watch.step()
        watch.step()
    run = numwatch.open_run(tmp_path)
    assert run.operations().num_rows == 0
    (event,) = [event for event in run.events() if event["kind"] == "audit"]
    assert event["note"].startswith("the model is compiled")
    torch._dynamo.reset()


def test_code_compiled_elsewhere_in_the_process_is_not_run_uncompiled(tmp_path):
    torch.compile(torch.sin, backend="eager")
    train("mlp", tmp_path)
    run = numwatch.open_run(tmp_path)
    assert run.operations().num_rows == 0
    (event,) = [event for event in run.events() if event["kind"] == "audit"]
    assert "compiled code" in event["note"]
