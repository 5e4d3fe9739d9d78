"""Chooses the kernel: numba on a CPU, Triton on a GPU where they work, else the reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

from numwatch.stats import on_gpu, reference
from numwatch.stats.block_kernel import accumulate_blocks, count_blocks
from numwatch.stats.compiled import WrongCountsError, is_news, told_of_compiling
from numwatch.stats.dtypes import WATCHED_DTYPES, dtype_name, every_kind, is_watched_dtype
from numwatch.stats.finite import all_finite
from numwatch.stats.layout import unpack_row
from numwatch.stats.moments import second_moment_figures
from numwatch.stats.packing import pack
from numwatch.stats.prepare import plain
from numwatch.stats.rows import new_block_rows, new_rows
from numwatch.stats.updates import swallowing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from torch import Tensor

    from numwatch.stats.cpu import RowWriter
    from numwatch.stats.tensor_stats import TensorStats


_QUICK = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of a `RowWriter`."""
_MANY = 10_000
"""Elements that take a kernel through its loops for large tensors."""


class Kernel(Protocol):
    """What every kernel offers; see `reference`."""

    def accumulate(self, x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
        """Adds all that x shows to one row."""

    def accumulate_amax(self, x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
        """Adds x's finite amax, numel and non-finite counts alone to one row."""


def accumulate(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds what x shows to one row of int64 [n, COUNTS] and float64 [n, REALS] on x's device.

    Does not synchronise with a GPU and leaves autograd alone. Rows may be written from several
    threads at once, one row from one thread at a time.

    Args:
        x: The tensor.
        counts: Contiguous; of one row alone [COUNTS] will do.
        reals: Likewise.
        row: Which of the n rows.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    _kernel(x, full=True).accumulate(x, counts, reals, row)


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds x's finite amax and numel, and how many elements are NaN or infinite, to one row.

    Fills AMAX, NUMEL, NANS, POSINFS, NEGINFS and CALLS; see `accumulate`.
    """
    _kernel(x, full=False).accumulate_amax(x, counts, reals, row)


def accumulate_group(
    tensors: Sequence[Tensor], rows: Sequence[int], counts: Tensor, reals: Tensor, *, full: bool
) -> None:
    """Adds each of many tensors of one device to a row, in as few launches as it can.

    Args:
        tensors: All on the device of `counts` and `reals`.
        rows: The row of each; it is quickest where no row comes twice.
        counts: int64 [n, COUNTS].
        reals: float64 [n, REALS].
        full: Whether as `accumulate` does; else as `accumulate_amax`.
    """
    if counts.is_cuda:
        on_gpu.accumulate_group(tensors, rows, counts, reals, full=full)
        return
    if counts.is_cpu and _all_compiled({x.dtype for x in tensors}, full=full):
        from numwatch.stats import cpu

        cpu.accumulate_group(tensors, rows, counts, reals, full=full)
        return
    for x, row in zip(tensors, rows, strict=True):
        (accumulate if full else accumulate_amax)(x, counts, reals, row)


def accumulate_rows(matrix: Tensor, first: int, counts: Tensor, reals: Tensor) -> None:
    """Adds each row of a contiguous matrix [k, n] to one of the rows `first`, `first` + 1, ...

    See `accumulate`.
    """
    if matrix.is_cpu and _all_compiled({matrix.dtype}, full=True):
        from numwatch.stats import cpu

        cpu.accumulate_rows(matrix, first, counts, reals)
        return
    rows = range(first, first + len(matrix))
    accumulate_group(matrix.unbind(), rows, counts, reals, full=True)


def row_writer(counts: Tensor, reals: Tensor, *, full: bool) -> RowWriter | None:
    """Returns what adds plain tensors to rows of the CPU quickest; None without numba.

    Args:
        counts: int64 [n, COUNTS].
        reals: float64 [n, REALS].
        full: Whether as `accumulate` does; else as `accumulate_amax`.
    """
    dtypes = [d for d in _QUICK if counts.is_cpu and _cpu_kernel(d, full) is not reference]
    if not dtypes:
        return None
    from numwatch.stats import cpu

    return cpu.RowWriter(counts, reals, dtypes, full=full)


def accumulate_gated(x: Tensor, counts: Tensor, reals: Tensor, row: int, mode: Tensor) -> None:
    """Adds to one row what a gate says: 0 nothing, 1 as `accumulate_amax`, 2 as `accumulate`.

    On a GPU the gate is read there, when the kernel runs: what a CUDA graph has captured follows
    it on every replay.

    Args:
        x: The tensor.
        counts: int64 [n, COUNTS].
        reals: float64 [n, REALS].
        row: Which of the n rows.
        mode: The gate, int32 [1] on x's device.
    """
    if x.device.type == "cpu":
        does = int(mode.numpy()[0])
        if does:
            (accumulate if does == on_gpu.FULL else accumulate_amax)(x, counts, reals, row)
    elif x.device.type == "cuda":
        on_gpu.accumulate_gated(x, counts, reals, row, mode)
    else:
        on_gpu.gated_by_masks(x, counts, reals, row, mode)


def warm_up(
    dtypes: Sequence[torch.dtype] = WATCHED_DTYPES,
    device: torch.device | str = "cpu",
    *,
    blocks: Sequence[torch.dtype] | None = None,
    updates: bool = True,
    tell: Callable[[], None] | None = None,
) -> None:
    """Compiles a device's kernels ahead of time, so that no step waits for it.

    On a GPU they are held against the reference too, for which the host waits; block counts and
    gated passes compile when first asked for.

    Args:
        dtypes: Of the tensors that will be looked at; others compile when they come.
        device: Where they will lie.
        blocks: Dtypes whose blocks will be counted; all of `dtypes` by default.
        updates: Whether updates and optimizer state will be looked at.
        tell: Called once, before what no earlier process has compiled and kept.
    """
    device = torch.device(device)
    if device.type == "cuda":
        on_gpu.warm_up(dtypes, device, tell)
    elif device.type == "cpu":
        with told_of_compiling(tell):
            _warm_up_loops(dtypes, dtypes if blocks is None else blocks, updates=updates)


def _warm_up_loops(
    dtypes: Sequence[torch.dtype], blocks: Sequence[torch.dtype], *, updates: bool
) -> None:
    counts, reals = new_rows(1)
    for dtype in dtypes:
        x = torch.zeros(1, dtype=dtype, device=counts.device)
        accumulate(x, counts, reals)
        accumulate_amax(x, counts, reals)
    for dtype in blocks:
        x = torch.zeros(1, dtype=dtype, device=counts.device)
        accumulate_blocks(x, new_block_rows(1)[0])
    none = torch.zeros(1, 1, device=counts.device)
    one = torch.ones(1, dtype=torch.float64, device=counts.device)
    if updates:
        swallowing(pack([none], [1], 1), none, "bf16")
        second_moment_figures(none, none, one, one)
    all_finite([none])


def tensor_stats(x: Tensor, *, blocks: Sequence[int] = ()) -> TensorStats:
    """Returns the statistics of a tensor: any float dtype, shape, layout or device.

    Example:
        >>> import torch, numwatch
        >>> stats = numwatch.tensor_stats(torch.tensor([0.0, 1.0, 1.5, 2.0**-30]))
        >>> stats.numel, stats.zeros, stats.amax, stats.amin == 2.0**-30
        (4, 1, 1.5, True)
        >>> flushed = stats.flushed("fp16")  # of the three that are not zero
        >>> round(flushed.value, 2), flushed.exact
        (0.33, True)
        >>> stats.flushed("fp16", scale=2.0**10).value
        0.0

    Args:
        x: The tensor; of a DTensor the local shard is taken.
        blocks: Block sizes for which to count how far elements lie below their block's amax, along
            the last dimension and across it.

    Raises:
        NotWatchedError: If x holds integers, bools or complex numbers, or no data.
    """
    x = plain(x)
    counts, reals = new_rows(1, x.device)
    accumulate(x, counts, reals)
    stats = unpack_row(counts[0].cpu().numpy(), reals[0].cpu().numpy(), dtype_name(x.dtype))
    return replace(stats, blocks=count_blocks(x, blocks)) if blocks else stats


def _kernel(x: Tensor, *, full: bool) -> Kernel:
    if x.is_cpu:
        return _cpu_kernel(x.dtype, full)
    return on_gpu if x.is_cuda else reference


def _all_compiled(dtypes: AbstractSet[torch.dtype], *, full: bool) -> bool:
    return all(_cpu_kernel(dtype, full) is not reference for dtype in dtypes)


@cache
def _cpu_kernel(dtype: torch.dtype, full: bool) -> Kernel:
    """The kernel for a dtype's full or amax pass, compiled and checked when first called for."""
    kernel = _compiled_kernel()
    if kernel is reference or not is_watched_dtype(dtype):
        return reference
    try:
        _check(kernel, dtype, full=full)
    except Exception as error:  # noqa: BLE001 - numba fails in many ways
        if is_news(error):
            _warn(f"{dtype_name(dtype)}: {error}")
        return reference
    return kernel


@cache
def _compiled_kernel() -> Kernel:
    try:
        from numwatch.stats import cpu
    except Exception as error:  # noqa: BLE001 - numba fails in many ways
        if is_news(error):
            _warn(str(error))
        return reference
    return cpu


def _warn(reason: str) -> None:
    warnings.warn(
        f"numwatch takes its slow CPU kernel, since numba does not work here ({reason}); "
        "delete the __pycache__ folders of numwatch or reinstall numba to fix this",
        RuntimeWarning,
        stacklevel=4,
    )


def _check(kernel: Kernel, dtype: torch.dtype, *, full: bool) -> None:
    """Raises RuntimeError unless a kernel counts as the reference does, few elements and many.

    numba recompiles a loop when the file of the loop changes, not when a constant imported from
    another file does: what lies in its cache may write to the columns of an older row.
    """
    kinds = every_kind(dtype)
    name = "accumulate" if full else "accumulate_amax"
    ours, theirs = new_rows(2), new_rows(2)
    for row, x in enumerate((kinds, kinds.repeat(-(-_MANY // kinds.numel())))):
        getattr(kernel, name)(x, *ours, row)
        getattr(reference, name)(x, *theirs, row)
    sums_agree = torch.allclose(ours[1], theirs[1], rtol=1e-9, atol=0.0)
    if not torch.equal(ours[0], theirs[0]) or not sums_agree:
        raise WrongCountsError("its loops count wrongly, perhaps from a stale cache")
