import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from numwatch import cli


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on every operation that would make the host wait for a device."""

    SYNCS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.SYNCS:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_sync() -> type[NoSync]:
    return NoSync


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread, so that figures and sums come out alike on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process; returns exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["numwatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def hooks_of(model: nn.Module) -> int:
    """Counts the hooks a model and its parameters carry."""
    modules = sum(
        len(m._forward_hooks)
        + len(m._forward_pre_hooks)
        + len(m._backward_hooks)
        + len(m._backward_pre_hooks)
        for m in model.modules()
    )
    parameters = sum(len(p._backward_hooks or {}) for p in model.parameters())
    return modules + parameters


@pytest.fixture
def count_hooks():
    return hooks_of


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    """Once code was compiled in a process, numwatch audits no operations: no test's doing."""
    if "torch._dynamo.eval_frame" in sys.modules:
        torch._dynamo.eval_frame.cached_backends.clear()


@pytest.fixture(autouse=True)
def _no_trace_left() -> Iterator[None]:
    """A test leaves autocast, grad mode and torch's global hooks as it found them."""
    before = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    global_hooks = dict(nn.modules.module._global_forward_hooks)
    yield
    assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == before
    assert dict(nn.modules.module._global_forward_hooks) == global_hooks
