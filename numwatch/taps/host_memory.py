"""Memory of the host that is taken as it is written to, and given back as a whole."""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

OWN_PAGES = 1 << 20
"""Bytes from which on pages of one's own are worth some calls of the system for them."""
# Elsewhere than on Windows pages are shared with forked processes unless one says otherwise.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANON} if hasattr(mmap, "MAP_PRIVATE") else {}


def zeros_on_host(n: int) -> Tensor:
    """Returns int64 [n], zeros.

    A large one takes memory only where it was written to, and lets go of it when it is gone: in the
    allocator's own it would stay the process's, in holes that other rows do not fit into.
    """
    size = n * torch.int64.itemsize
    if size < OWN_PAGES:
        return torch.zeros(n, dtype=torch.int64, device="cpu")
    pages = mmap.mmap(-1, size, **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)  # 500 times fewer page faults
    return torch.frombuffer(pages, dtype=torch.int64)
