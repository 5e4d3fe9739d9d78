"""Takes the GPU kernels where Triton works, else the reference, and says so once."""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from numwatch.errors import NumwatchError
from numwatch.stats import block_reference, reference
from numwatch.stats.block_layout import BLOCK_KINDS
from numwatch.stats.dtypes import dtype_name, every_kind
from numwatch.stats.layout import AMAX, AMAX_COUNTS, COUNTS, REALS
from numwatch.stats.rows import merge_rows, new_rows

_refused: set[torch.dtype] = set()
"""Dtypes whose kernels failed here."""

FULL = 2
"""Of a gate; see `gpu.kernels`."""

_LONG = 1.0
"""Seconds for a kernel's first launch that Triton takes only where it compiles."""


def accumulate(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds all that x shows to one row; see `reference`."""

    def compiled() -> None:
        from numwatch.stats.gpu import launch

        launch.accumulate(x, counts, reals, row)

    _either(x.dtype, compiled, lambda: reference.accumulate(x, counts, reals, row))


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds x's finite amax, numel and non-finite counts alone to one row; see `reference`."""

    def compiled() -> None:
        from numwatch.stats.gpu import launch

        launch.accumulate_amax(x, counts, reals, row)

    _either(x.dtype, compiled, lambda: reference.accumulate_amax(x, counts, reals, row))


def accumulate_gated(x: Tensor, counts: Tensor, reals: Tensor, row: int, mode: Tensor) -> None:
    """Adds to one row what `mode` says when the device gets there."""

    def compiled() -> None:
        from numwatch.stats.gpu import launch

        launch.accumulate_gated(x, counts, reals, row, mode)

    _either(x.dtype, compiled, lambda: gated_by_masks(x, counts, reals, row, mode))


def accumulate_group(
    tensors: Sequence[Tensor], rows: Sequence[int], counts: Tensor, reals: Tensor, *, full: bool
) -> None:
    """Adds each of many tensors to a row of its own; see `kernels.accumulate_group`."""
    one = reference.accumulate if full else reference.accumulate_amax
    by_dtype: dict[torch.dtype, list[tuple[Tensor, int]]] = {}
    for x, row in zip(tensors, rows, strict=True):
        by_dtype.setdefault(x.dtype, []).append((x, row))
    for dtype, members in by_dtype.items():

        def compiled(members: list[tuple[Tensor, int]] = members) -> None:
            from numwatch.stats.gpu import group

            group.accumulate_group(members, counts, reals, full=full)

        def plainly(members: list[tuple[Tensor, int]] = members) -> None:
            for x, row in members:
                one(x, counts, reals, row)

        _either(dtype, compiled, plainly)


def accumulate_blocks(x: Tensor, rows: Tensor) -> None:
    """Adds the blocks of x to rows; see `block_reference`."""

    def compiled() -> None:
        from numwatch.stats.gpu import block_launch

        block_launch.accumulate_blocks(x, rows)

    _either(x.dtype, compiled, lambda: block_reference.accumulate_blocks(x, rows, BLOCK_KINDS))


def gated_by_masks(x: Tensor, counts: Tensor, reals: Tensor, row: int, mode: Tensor) -> None:
    """Does as `accumulate_gated` without a kernel: reads x, whatever the mode is."""
    all_counts, all_reals = new_rows(2, x.device)
    reference.accumulate(x, all_counts, all_reals)
    (own_counts, _), (own_reals, empty) = all_counts, all_reals
    full, some = (mode == FULL).view(()), (mode > 0).view(())
    amax_only = torch.zeros(COUNTS, dtype=torch.bool, device=x.device)
    for column in AMAX_COUNTS:
        amax_only[column].fill_(True)  # noqa: FBT003
    into, into_reals = counts.view(-1, COUNTS)[row], reals.view(-1, REALS)[row]
    into += own_counts.where(full | (some & amax_only), 0)
    shown = own_reals.where(full, empty)
    shown[AMAX] = own_reals[AMAX].where(some, 0.0)
    merge_rows(into, into_reals, torch.zeros_like(into), shown)


def warm_up(
    dtypes: Sequence[torch.dtype], device: torch.device, tell: Callable[[], None] | None = None
) -> None:
    """Compiles the kernels for these dtypes and holds them against the reference; waits for both.

    A dtype whose kernels fail, or count wrongly, goes by the reference from then on. Triton says
    nothing of what it has kept: `tell` is called where the first kernel was long in coming.
    """
    _has_triton()  # which takes a while to import, too
    for dtype in dtypes:
        x = every_kind(dtype).to(device)
        (counts, expected), (reals, expected_reals) = (
            rows.split(2) for rows in new_rows(4, device)
        )
        start = time.perf_counter()
        accumulate(x, counts, reals, 0)
        if tell is not None and time.perf_counter() - start > _LONG:
            tell()
            tell = None
        accumulate_amax(x, counts, reals, 0)
        accumulate_group([x], [1], counts, reals, full=True)
        accumulate_group([x], [1], counts, reals, full=False)
        for row in (0, 1):
            reference.accumulate(x, expected, expected_reals, row)
            reference.accumulate_amax(x, expected, expected_reals, row)
        agree = torch.allclose(reals, expected_reals, rtol=1e-5, atol=0.0)
        if dtype not in _refused and not (torch.equal(counts, expected) and agree):
            _refuse(dtype, "its kernels count wrongly")


def _either(dtype: torch.dtype, compiled: Callable[[], None], plainly: Callable[[], None]) -> None:
    """Runs the kernel, or what needs none where the dtype's kernels once failed.

    Compiling fails before anything is launched, so that nothing is added twice.
    """
    if not _has_triton() or dtype in _refused:
        plainly()
        return
    try:
        compiled()
    except (NumwatchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - Triton fails in many ways
        _refuse(dtype, str(error))
        plainly()


@cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except Exception as error:  # noqa: BLE001 - it may be there and broken
        _warn(str(error))
        return False
    return True


def _refuse(dtype: torch.dtype, reason: str) -> None:
    _refused.add(dtype)
    # The last line of what Triton says is what happened.
    _warn(f"{dtype_name(dtype)}: {(reason.strip().splitlines() or ['no reason given'])[-1]}")


def _warn(reason: str) -> None:
    warnings.warn(
        f"numwatch counts slowly on the GPU, since Triton does not work here ({reason}); "
        "install the triton that belongs to this torch to fix this",
        RuntimeWarning,
        stacklevel=4,
    )
