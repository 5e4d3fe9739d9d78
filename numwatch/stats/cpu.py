"""The CPU kernel: compiled loops over bit patterns, large tensors split over a few threads.

The same contract as `reference`: counts equal to the last one, sums up to FP64 rounding.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.stats import code_loops, loops
from numwatch.stats.dtypes import LAYOUTS
from numwatch.stats.layout import (
    AMAX,
    CALLS,
    COUNTS,
    NANS,
    NEGINFS,
    NUMEL,
    POSINFS,
    REALS,
    ZEROS,
    Counts,
    Reals,
    merge_rows,
    new_rows,
)
from numwatch.stats.prepare import dense
from numwatch.stats.threads import in_threads

Bits = npt.NDArray[np.unsignedinteger]
Sweep = Callable[[Bits, Counts, Reals], None]

_NUMPY_DTYPES = (torch.float64, torch.float32, torch.float16)
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_PART = 1 << 19
"""Fewest elements worth a thread of their own: it may be long in coming on a busy machine."""


def accumulate(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds what x shows to one row of int64 [n, COUNTS] and float64 [n, REALS]; see `reference`.

    Releases the interpreter's lock while it reads. One row from one thread at a time.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    flat, left_out = dense(x)
    counts, reals = counts.view(-1, COUNTS)[row], reals.view(-1, REALS)[row]
    sweep = _SWEEPS.get(flat.dtype) or _float8_sweep(flat.dtype)
    bits = bits_of(flat)
    own = counts.numpy()
    threads = _threads(bits)
    if threads > 1:
        _sweep_in_parts(sweep, bits, counts, reals, threads)
    else:
        sweep(bits, own, reals.numpy())
    own[CALLS] += 1
    if left_out:
        own[NUMEL] += left_out
        own[ZEROS] += left_out


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds x's finite amax, numel and non-finite counts alone to one row; see `reference`."""
    flat, left_out = dense(x)
    counts, reals = counts.view(-1, COUNTS)[row], reals.view(-1, REALS)[row]
    bits = bits_of(flat)
    amax_of = _amax_loop(flat.dtype)
    threads = _threads(bits)
    if threads > 1:
        parts = in_threads([partial(amax_of, part) for part in np.array_split(bits, threads)])
    else:
        parts = [amax_of(bits)]
    own, own_reals = counts.numpy(), reals.numpy()
    for pattern, nans, posinfs, neginfs in parts:
        own_reals[AMAX] = max(own_reals[AMAX], LAYOUTS[flat.dtype].magnitude(int(pattern)))
        own[NANS] += nans
        own[POSINFS] += posinfs
        own[NEGINFS] += neginfs
    own[NUMEL] += bits.size + left_out
    own[CALLS] += 1


def _threads(bits: Bits) -> int:
    return min(torch.get_num_threads(), bits.size // _PART)


def _sweep_in_parts(sweep: Sweep, bits: Bits, counts: Tensor, reals: Tensor, threads: int) -> None:
    parts = np.array_split(bits, threads)
    part_counts, part_reals = new_rows(threads)
    rows = zip(parts, part_counts.numpy(), part_reals.numpy(), strict=True)
    in_threads([partial(sweep, *row) for row in rows])
    for i in range(threads):
        merge_rows(counts, reals, part_counts[i], part_reals[i])


def bits_of(flat: Tensor) -> Bits:
    """Returns the bit patterns of a flat CPU tensor, sharing its memory."""
    if flat.dtype not in _NUMPY_DTYPES:
        flat = flat.view(LAYOUTS[flat.dtype].integer)
    return flat.numpy().view(_UNSIGNED[flat.itemsize])


@cache
def _amax_loop(dtype: torch.dtype) -> Callable[[Bits], Any]:
    loop: Callable[[Bits], Any] = code_loops.amax_loop(_UNSIGNED[dtype.itemsize], LAYOUTS[dtype])
    return loop


@cache
def _float8_sweep(dtype: torch.dtype) -> Sweep:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    meanings = codes.to(torch.float64).numpy().view(np.uint64)

    def sweep(bits: Bits, counts: Counts, reals: Reals) -> None:
        code_loops.sweep_float8(bits, meanings, counts, reals)

    return sweep


_SWEEPS: dict[torch.dtype, Sweep] = {
    torch.float64: code_loops.sweep_float64,
    torch.float32: loops.sweep_float32,
    torch.bfloat16: loops.sweep_bfloat16,
    torch.float16: loops.sweep_float16,
}
