"""On the device: the two kernels that are launched, for one tensor and for a group."""

from functools import partial

import triton.language as tl

from numwatch.stats import layout
from numwatch.stats.gpu.jit import jit
from numwatch.stats.gpu.place import ALIGNMENT
from numwatch.stats.gpu.reading import pointer
from numwatch.stats.gpu.sweep import amax_only, full

OFF, AMAX_ONLY, FULL = range(3)
"""What a kernel does; the values of a gate."""
GATED = 3
"""That, as a gate on the device says when the kernel runs."""

ADDRESS, FIRST, LAST, ROW, PART, PARTS = range(6)
"""Columns of a group's table, int64 [programs, TABLE_COLUMNS]; see `sweep_group`."""
TABLE_COLUMNS = PARTS + 1

_ALIGNMENT = tl.constexpr(ALIGNMENT)
_COUNTS = tl.constexpr(layout.COUNTS)
_REALS = tl.constexpr(layout.REALS)
_ZEROS = tl.constexpr(layout.ZEROS)
_NUMEL = tl.constexpr(layout.NUMEL)
_CALLS = tl.constexpr(layout.CALLS)
_AMAX_ONLY = tl.constexpr(AMAX_ONLY)
_FULL = tl.constexpr(FULL)
_GATED = tl.constexpr(GATED)
_ADDRESS = tl.constexpr(ADDRESS)
_FIRST = tl.constexpr(FIRST)
_LAST = tl.constexpr(LAST)
_ROW = tl.constexpr(ROW)
_PART = tl.constexpr(PART)
_PARTS = tl.constexpr(PARTS)
_TABLE_COLUMNS = tl.constexpr(TABLE_COLUMNS)

_VARYING = [
    "address",
    "first",
    "last",
    "columns",
    "row_step",
    "column_step",
    "left_out",
    "row",
    "gate",
]
"""Compiled for once, whatever they are."""


@partial(jit, do_not_specialize=_VARYING)
def sweep(
    address: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    columns: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    left_out: tl.tensor,
    counts: tl.tensor,
    reals: tl.tensor,
    row: tl.tensor,
    gate: tl.tensor,
    MODE: tl.constexpr,
    WALK: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    LARGEST: tl.constexpr,
    HAS_INF: tl.constexpr,
    MINUS_ZERO_IS_NAN: tl.constexpr,
) -> None:
    """Adds the elements at places [first, last) from a 16-byte aligned address to one row.

    Args:
        address: Where place 0 lies.
        first: Less than fits in 16 bytes; 0 unless the walk is FLAT.
        last: The end.
        columns: Places in a row of the tensor.
        row_step: Elements from one row to the next.
        column_step: Likewise of columns.
        left_out: Zeros that are stored nowhere.
        counts: int64 [n, COUNTS].
        reals: float64 [n, REALS].
        row: Which of the n.
        gate: int32 [1], read if MODE is GATED.
        MODE: What to do.
        WALK: See `reading`.
        GROUPS: A tile is [LANES, GROUPS, WIDTH].
        LANES: Threads of a program.
        WIDTH: Elements of a load.
        BYTES: Of an element; this and the others: see `dtypes.BitLayout`.
        MANTISSA: Likewise.
        BIAS: Likewise.
        LARGEST: Likewise.
        HAS_INF: Likewise.
        MINUS_ZERO_IS_NAN: Likewise.
    """
    own = counts + (tl.full([], 0, tl.int64) + row) * _COUNTS
    own_reals = reals + (tl.full([], 0, tl.int64) + row) * _REALS
    base = pointer(address, BYTES, _ALIGNMENT)
    mode = tl.load(gate) if MODE == _GATED else tl.full([], MODE, tl.int32)
    part = tl.program_id(0)
    parts = tl.num_programs(0)
    if (part == 0) & (mode > 0):
        elements = tl.full([], 0, tl.int64) + last - first + left_out
        tl.atomic_add(own + _NUMEL, elements, sem="relaxed")
        tl.atomic_add(own + _CALLS, tl.full([], 1, tl.int64), sem="relaxed")
    if MODE != _AMAX_ONLY:
        if mode == _FULL:
            if part == 0:
                zeros = tl.full([], 0, tl.int64) + left_out
                tl.atomic_add(own + _ZEROS, zeros, sem="relaxed")
            full(
                base, first, last, columns, row_step, column_step, part, parts, own, own_reals,
                WALK, GROUPS, LANES, WIDTH,
                BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN,
            )  # fmt: skip
    if MODE != _FULL:
        if mode == _AMAX_ONLY:
            amax_only(
                base, first, last, columns, row_step, column_step, part, parts, own, own_reals,
                WALK, GROUPS, LANES, WIDTH,
                BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN,
            )  # fmt: skip


@jit
def sweep_group(
    table: tl.tensor,
    counts: tl.tensor,
    reals: tl.tensor,
    MODE: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    LARGEST: tl.constexpr,
    HAS_INF: tl.constexpr,
    MINUS_ZERO_IS_NAN: tl.constexpr,
) -> None:
    """Adds flat tensors to rows: what each program reads stands in its line of the table.

    A line names a tensor by address and places as `sweep` does, its row, which part of the
    tensor is the program's and how many parts there are.
    """
    line = table + tl.program_id(0) * _TABLE_COLUMNS
    base = pointer(tl.load(line + _ADDRESS), BYTES, _ALIGNMENT)
    first = tl.load(line + _FIRST)
    last = tl.load(line + _LAST)
    row = tl.load(line + _ROW)
    part = tl.load(line + _PART)
    parts = tl.load(line + _PARTS)
    own = counts + row * _COUNTS
    own_reals = reals + row * _REALS
    if part == 0:
        tl.atomic_add(own + _NUMEL, last - first, sem="relaxed")
        tl.atomic_add(own + _CALLS, tl.full([], 1, tl.int64), sem="relaxed")
    if MODE == _FULL:
        full(
            base, first, last, last, last, last, part, parts, own, own_reals,
            0, GROUPS, LANES, WIDTH, BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN,
        )  # fmt: skip
    else:
        amax_only(
            base, first, last, last, last, last, part, parts, own, own_reals,
            0, GROUPS, LANES, WIDTH, BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN,
        )  # fmt: skip
