"""What emulation asks of autograd and autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_backward() -> bool:
    """Whether autograd is running on this thread: a forward seen then is a recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)  # noqa: SLF001  # no public equivalent


def as_autocast(x: Tensor) -> Tensor:
    """Returns a GEMM's input as the autocast of its device makes it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype is torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Within it, products take operands as they are."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
