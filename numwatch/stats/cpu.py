"""The CPU kernel: compiled loops over bit patterns, large tensors split over a few threads.

The same contract as `reference`: counts equal to the last one, sums up to FP64 rounding. Loops
are called by address (see `memory`), since what a call costs is what small tensors cost.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.stats import code_loops, loops
from numwatch.stats.dtypes import FLOAT8_DTYPES, LAYOUTS
from numwatch.stats.exponent_loops import CHUNK, MANTISSA_BITS, WORKSPACE
from numwatch.stats.layout import AMAX, AMIN, CALLS, COUNTS, NUMEL, REALS, SUM, ZEROS
from numwatch.stats.memory import TASK
from numwatch.stats.prepare import LOW, address_of, dense, is_flat
from numwatch.stats.repeated import add_repeated
from numwatch.stats.rows import new_rows
from numwatch.stats.threads import share_out

Bits = npt.NDArray[np.unsignedinteger]
Loop = Callable[[int, int, int, int, int], None]
"""Of (address, numel, counts, reals, work); see `memory`."""
Loops = Mapping[torch.dtype, Loop]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_NUMPY_DTYPES = (torch.float64, torch.float32, torch.float16)
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_COUNTS_BYTES, _REALS_BYTES = 8 * COUNTS, 8 * REALS
_PART = 1 << 18
"""Fewest elements worth a thread of their own: it may be long in coming on a busy machine."""
_AMAX_PART = 1 << 20
"""Likewise where only the amax is taken."""
_LINE = 64
"""Bytes of a line of the cache, at a multiple of which a workspace lies."""
_NOWHERE = (0, 0)
_PARTS = 4
"""Parts for each thread, so that none waits long for another."""


def accumulate(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds what x shows to one row of int64 [n, COUNTS] and float64 [n, REALS]; see `reference`.

    Releases the interpreter's lock while it reads. One row from one thread at a time.

    Raises:
        NotWatchedError: See `prepare.dense`.
        ValueError: If the rows are not contiguous memory of the CPU with such a row.
    """
    left_out = _add(_SWEEPS, x, counts, reals, row)
    if left_out:
        own = counts.view(-1, COUNTS)[row]
        own[NUMEL] += left_out
        own[ZEROS] += left_out


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds x's finite amax, numel and non-finite counts alone to one row; see `reference`."""
    left_out = _add(_AMAX_LOOPS, x, counts, reals, row)
    if left_out:
        counts.view(-1, COUNTS)[row, NUMEL] += left_out


def accumulate_group(
    tensors: Sequence[Tensor], rows: Sequence[int], counts: Tensor, reals: Tensor, *, full: bool
) -> None:
    """Adds each tensor to a row; all but the large ones of a dtype in one call or a few."""
    by_dtype = _SWEEPS if full else _AMAX_LOOPS
    if rows:
        _row_at(counts, reals, min(rows))
        _row_at(counts, reals, max(rows))
    first, first_reals = counts.data_ptr(), reals.data_ptr()
    tables: dict[torch.dtype, list[int]] = {}
    for x, row in zip(tensors, rows, strict=True):
        n, dtype = x.numel(), x.dtype
        if n < 2 * _PART and dtype in by_dtype and is_flat(x):
            table = tables.setdefault(dtype, [])
            at, reals_at = first + row * _COUNTS_BYTES, first_reals + row * _REALS_BYTES
            table += (address_of(x), n, at, reals_at)
        else:
            (accumulate if full else accumulate_amax)(x, counts, reals, row)
    # Two threads may not write to one row.
    threads = torch.get_num_threads() if len(set(rows)) == len(rows) else 1
    for dtype, table in tables.items():
        tasks = np.array(table, np.int64).reshape(-1, TASK)
        _add_tasks(by_dtype[dtype], dtype, tasks, threads, _PART if full else _AMAX_PART)


def accumulate_rows(matrix: Tensor, first: int, counts: Tensor, reals: Tensor) -> None:
    """Adds each row of a contiguous matrix [k, n] to one of the rows `first`, `first` + 1, ..."""
    k, n = matrix.shape
    if not k:
        return
    at, reals_at = _row_at(counts, reals, first)
    _row_at(counts, reals, first + k - 1)
    own = np.arange(k, dtype=np.int64)
    table = np.empty((k, TASK), np.int64)
    table[:, 0] = address_of(matrix) + own * (n * matrix.itemsize)
    table[:, 1] = n
    table[:, 2], table[:, 3] = at + own * _COUNTS_BYTES, reals_at + own * _REALS_BYTES
    _add_tasks(_SWEEPS[matrix.dtype], matrix.dtype, table, torch.get_num_threads(), _PART)


class RowWriter:
    """Adds plain tensors to rows that stay in their place: a third of what `accumulate` takes.

    After a GEMM nothing of Python's or torch's is left in a processor's caches, and each function
    called here takes a microsecond or two of waiting for its code. So they are few.

    Attributes:
        counts: The rows; they must live as long as this.
        reals: Likewise.
    """

    def __init__(
        self, counts: Tensor, reals: Tensor, dtypes: Iterable[torch.dtype], *, full: bool
    ) -> None:
        """Takes rows int64 [n, COUNTS] and float64 [n, REALS], and whose elements are added."""
        self.counts, self.reals = counts, reals
        self._counts_at, self._reals_at = _row_at(counts, reals, 0)
        by_dtype = _SWEEPS if full else _AMAX_LOOPS
        self._loops = {dtype: by_dtype[dtype] for dtype in dtypes}
        # What threads share takes `accumulate`.
        part = _PART if full else _AMAX_PART
        self._most = 2 * part - 1 if torch.get_num_threads() > 1 else sys.maxsize

    def look(self, x: Tensor) -> tuple[int, int]:
        """Returns x's address and size if `put` can take it; the address is 0 where it can't."""
        if type(x) is not Tensor or x.dtype not in self._loops or not x.is_cpu:
            return _NOWHERE
        try:
            address = x.data_ptr()
        except RuntimeError:  # that of a functorch wrapper, which has none
            return _NOWHERE
        if address < LOW or not x.is_contiguous() or x.layout is not torch.strided:
            return _NOWHERE
        n = x.numel()
        return _NOWHERE if n > self._most or x.is_neg() or x.is_nested else (address, n)

    def put(self, address: int, numel: int, dtype: torch.dtype, row: int) -> None:
        """Adds what `look` has found to a row there is."""
        at, reals_at = self._counts_at + row * _COUNTS_BYTES, self._reals_at + row * _REALS_BYTES
        self._loops[dtype](address, numel, at, reals_at, _thread.work[dtype])


def _add(by_dtype: Loops, x: Tensor, counts: Tensor, reals: Tensor, row: int) -> int:
    """Adds a tensor to a row; returns how many zeros it does not store."""
    loop = by_dtype.get(x.dtype)
    left_out = 0
    if loop is None or not is_flat(x):
        single = add_repeated(partial(_add, by_dtype), x, counts, reals, row)
        if single is None:
            return 0
        x, left_out = dense(single)
        loop = by_dtype[x.dtype]
    n = x.numel()
    row_at = _row_at(counts, reals, row)
    part = _PART if by_dtype is _SWEEPS else _AMAX_PART
    threads = min(torch.get_num_threads(), n // part) if n >= 2 * part else 1
    if threads > 1:
        own_row = counts.view(-1, COUNTS)[row], reals.view(-1, REALS)[row]
        _add_parts(loop, x, *own_row, threads, part)
    else:
        loop(address_of(x), n, *row_at, _thread.work[x.dtype])
    return left_out


def _row_at(counts: Tensor, reals: Tensor, row: int) -> tuple[int, int]:
    """The addresses of a row."""
    if not (
        0 <= row < counts.nbytes // _COUNTS_BYTES
        and row < reals.nbytes // _REALS_BYTES
        and counts.is_contiguous()
        and reals.is_contiguous()
        and counts.is_cpu
        and reals.is_cpu
    ):
        raise ValueError(
            f"no row {row} in contiguous int64 [n, {COUNTS}] and float64 [n, {REALS}] on the CPU; "
            f"got {list(counts.shape)} and {list(reals.shape)}: make rows with new_rows"
        )
    return counts.data_ptr() + row * _COUNTS_BYTES, reals.data_ptr() + row * _REALS_BYTES


def _add_parts(
    loop: Loop, x: Tensor, counts: Tensor, reals: Tensor, threads: int, part: int
) -> None:
    """Adds a large tensor to a row [COUNTS] and [REALS], in parts of at least so many elements.

    A few threads share the parts. Each has a row of its own.
    """
    address, n, width = address_of(x), x.numel(), x.itemsize
    # Whole chunks, for the loops take what is left of one element by element.
    step = -(-n // min(threads * _PARTS, n // part) // CHUNK) * CHUNK
    rows = new_rows(threads)

    def worker(own: int) -> Callable[[int], None]:
        row_at = _row_at(*rows, own)
        return lambda start: loop(
            address + start * width, min(step, n - start), *row_at, _thread.work[x.dtype]
        )

    share_out(range(0, n, step), [worker(own) for own in range(threads)])
    # Through numpy, which takes half the time of `merge_rows` for a few numbers.
    part_counts, part_reals = rows[0].numpy(), rows[1].numpy()
    part_counts[:, CALLS] = 0
    own_counts, own_reals = counts.numpy(), reals.numpy()
    own_counts += part_counts.sum(axis=0)
    own_counts[CALLS] += 1
    own_reals[AMAX] = max(own_reals[AMAX], part_reals[:, AMAX].max())
    own_reals[AMIN] = min(own_reals[AMIN], part_reals[:, AMIN].min())
    own_reals[SUM:] += part_reals[:, SUM:].sum(axis=0)


def _add_tasks(
    loop: Loop, dtype: torch.dtype, tasks: npt.NDArray[np.int64], threads: int, part: int
) -> None:
    """Runs a table of tasks, [n, TASK], in parts of like size that threads share.

    A thread has `part` elements of its own at least.
    """
    threads = min(threads, int(tasks[:, 1].sum()) // part)
    parts = [tasks]
    if threads > 1:
        n = threads * _PARTS
        ends = np.cumsum(tasks[:, 1])
        parts = np.split(tasks, np.searchsorted(ends, ends[-1] * np.arange(1, n) // n))

    def worker(part: npt.NDArray[np.int64]) -> None:
        loop(part.ctypes.data, len(part), 0, 0, _thread.work[dtype])

    share_out(parts, [worker] * max(threads, 1))


def bits_of(flat: Tensor) -> Bits:
    """Returns the bit patterns of a flat CPU tensor, which must outlive them, in its memory.

    Not by its own `numpy()`: torch resizes no storage that has ever been given away, and FSDP does.
    """
    size = flat.numel() * flat.itemsize
    memory = (ctypes.c_uint8 * size).from_address(address_of(flat) if size else 0)
    bits: Bits = np.frombuffer(memoryview(memory), _UNSIGNED[flat.itemsize])
    return bits


def _meanings(dtype: torch.dtype) -> npt.NDArray[np.uint64]:
    """The FP64 patterns of the 256 codes of a float8 dtype."""
    codes = torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype)
    return codes.to(torch.float64).numpy().view(np.uint64)


def _workspace(dtype: torch.dtype) -> npt.NDArray[np.uint32]:
    spare = np.zeros(WORKSPACE + _LINE // 4, np.uint32)
    start = -spare.ctypes.data % _LINE // 4
    cells = spare[start : start + WORKSPACE]
    cells[MANTISSA_BITS] = LAYOUTS[dtype].mantissa_bits
    return cells


_MEANINGS = {dtype: _meanings(dtype) for dtype in FLOAT8_DTYPES}


class _Thread(threading.local):
    """What each thread has of its own.

    Attributes:
        work: By dtype, the address that its loops take for `work`.
    """

    def __init__(self) -> None:
        self._workspaces = {dtype: _workspace(dtype) for dtype in _FLOATS}
        arrays: dict[torch.dtype, Bits] = {**_MEANINGS, **self._workspaces}
        self.work = {dtype: array.ctypes.data for dtype, array in arrays.items()}
        self.work[torch.float64] = 0


_thread = _Thread()

_SWEEPS: dict[torch.dtype, Loop] = {
    torch.float64: code_loops.sweep_float64,
    **dict.fromkeys(_FLOATS, loops.sweep_floats),
    **dict.fromkeys(FLOAT8_DTYPES, code_loops.sweep_float8),
}
_AMAX_LOOPS: dict[torch.dtype, Loop] = {
    dtype: code_loops.amax_loop(_UNSIGNED[dtype.itemsize], layout)
    for dtype, layout in LAYOUTS.items()
}
