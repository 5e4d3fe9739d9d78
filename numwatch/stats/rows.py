"""Packed rows as tensors: made empty on a device, and merged there; see `layout`."""

import torch
from torch import Tensor

from numwatch.stats.block_layout import BLOCK_COLUMNS, BLOCK_ROWS
from numwatch.stats.layout import AMAX, AMIN, COUNTS, REALS, SUM


def new_rows(n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Returns n empty rows: int64 [n, COUNTS] and float64 [n, REALS].

    They can be written in and out of inference mode, wherever they are made.
    """
    with torch.inference_mode(mode=False):
        counts = torch.empty(n, COUNTS, dtype=torch.int64, device=device)
        reals = torch.empty(n, REALS, dtype=torch.float64, device=device)
    reset_rows(counts, reals)
    return counts, reals


def reset_rows(counts: Tensor, reals: Tensor) -> None:
    """Empties rows [..., COUNTS] and [..., REALS] in place; the empty row has amin inf."""
    counts.zero_()
    reals.zero_()
    reals[..., AMIN] = torch.inf


def merge_rows(counts: Tensor, reals: Tensor, more_counts: Tensor, more_reals: Tensor) -> None:
    """Adds rows [..., COUNTS] and [..., REALS] to others of the same shape, in place."""
    counts += more_counts
    reals[..., AMAX] = torch.maximum(reals[..., AMAX], more_reals[..., AMAX])
    reals[..., AMIN] = torch.minimum(reals[..., AMIN], more_reals[..., AMIN])
    reals[..., SUM:] += more_reals[..., SUM:]


def new_block_rows(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns empty rows for n tensors, int64 [n, BLOCK_ROWS, BLOCK_COLUMNS]."""
    with torch.inference_mode(mode=False):
        return torch.zeros(n, BLOCK_ROWS, BLOCK_COLUMNS, dtype=torch.int64, device=device)
