"""Many tensors of one dtype in one launch, through a table on the device."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.stats.gpu import kernels
from numwatch.stats.gpu.launch import EACH, LANES, accumulate, accumulate_amax, on, tiling
from numwatch.stats.gpu.place import FLAT, Place, load_width, place

_TILES = 16
"""Tiles of a program, so that it goes to its row seldom; a small tensor has fewer."""
_PLANS = 64
"""Plans kept: a training step has a few groups, whose sizes stay the same."""

Lines = npt.NDArray[np.int64]


def accumulate_group(
    members: Sequence[tuple[Tensor, int]], counts: Tensor, reals: Tensor, *, full: bool
) -> None:
    """Adds tensors of one dtype each to a row of its own; see `kernels.accumulate_group`.

    One launch; tensors that lie in pieces go one by one.
    """
    flat: list[tuple[Place, int]] = []
    for x, row in members:
        where = place(x)
        if where.walk == FLAT and not where.left_out:
            flat.append((where, row))
        else:
            (accumulate if full else accumulate_amax)(x, counts, reals, row)
    if not flat:
        return
    dtype = flat[0][0].tensor.dtype
    table = _sent(_lines(flat), counts.device)
    with on(counts.device):
        kernels.sweep_group[(len(table),)](
            table,
            counts,
            reals,
            MODE=kernels.FULL if full else kernels.AMAX_ONLY,
            **tiling(dtype, load_width(dtype.itemsize)),
        )


def _lines(members: Sequence[tuple[Place, int]]) -> Lines:
    """The table, int64 [programs, TABLE_COLUMNS]: each tensor's line for each of its programs."""
    plan = _plan(tuple(where.last for where, _ in members))
    own = np.array([(where.address, where.first, where.last, row) for where, row in members])
    return np.hstack([own[plan[:, 0]], plan[:, 1:]])


@lru_cache(_PLANS)
def _plan(places: tuple[int, ...]) -> Lines:
    """Tensor, part and number of parts, int64 [programs, 3]."""
    share = LANES * EACH * _TILES
    parts = np.maximum(-(-np.array(places, np.int64) // share), 1)
    member = np.repeat(np.arange(len(parts)), parts)
    first = np.cumsum(parts) - parts
    return np.stack([member, np.arange(len(member)) - first[member], parts[member]], axis=1)


def _sent(lines: Lines, device: torch.device) -> Tensor:
    """The table on a device, from pinned memory, which is kept until the copy is done."""
    if device.type != "cuda":
        return torch.from_numpy(lines)
    pinned = torch.empty(lines.shape, dtype=torch.int64, pin_memory=True)
    pinned.numpy()[...] = lines
    return pinned.to(device, non_blocking=True)
