"""On the device: tiles of one tensor, each read once, into one row.

The floor is one read of the tensor, so that what counts is instructions an element. Those of every
tile: its patterns' largest and smallest, the sums, the powers of two, and their binades
(`binade_counts`). All else hangs on the largest and smallest: zeros are counted in tiles that have
some, non-finite elements taken out of tiles that have some, squares scaled where the tile's amax
would take them out of FP32's range, and a run of tiles goes to the row only when its binades no
longer fit together. Programs are few and take many tiles, so that atomics are few.

Counts are integers, added by atomics: deterministic. Sums are FP32 within a thread's part of a tile
and FP64 from there on; programs add theirs in any order.
"""

import triton.language as tl

from numwatch.stats import layout
from numwatch.stats.binades import BINADE_MIN
from numwatch.stats.gpu.binade_counts import WINDOW, add_to_row, count
from numwatch.stats.gpu.jit import jit
from numwatch.stats.gpu.reading import as_fp32, read
from numwatch.stats.gpu.tiles import (
    add_nonfinite,
    as_float64,
    in_threads,
    largest,
    outside,
    smallest,
    total,
)

RUN = 256
"""Tiles after which a run ends: fewer than would fill counters of 16 bits, 248 elements each."""

_ZEROS = tl.constexpr(layout.ZEROS)
_POW2S = tl.constexpr(layout.POW2S)
_AMAX = tl.constexpr(layout.AMAX)
_AMIN = tl.constexpr(layout.AMIN)
_SUM = tl.constexpr(layout.SUM)
_SUMSQ = tl.constexpr(layout.SUMSQ)

_RUN = tl.constexpr(RUN)
_WINDOW = tl.constexpr(WINDOW)
_SIGN = tl.constexpr(0x7FFF_FFFF)
_INF = tl.constexpr(0x7F80_0000)
_MANTISSA = tl.constexpr(0x007F_FFFF)
_SIGN64 = tl.constexpr(0x7FFF_FFFF_FFFF_FFFF)
_INF64 = tl.constexpr(0x7FF0_0000_0000_0000)
_MANTISSA64 = tl.constexpr(0x000F_FFFF_FFFF_FFFF)
_BINADE64 = tl.constexpr(1023 + BINADE_MIN)
_LAST = tl.constexpr(layout.BINADES - 1)
_TAME = tl.constexpr(50)
"""Squares of amaxes between 2^-50 and 2^50 need no scale."""


@jit
def _is_power64(magnitude: tl.tensor) -> tl.tensor:
    """Whether FP64 patterns are powers of two, subnormal ones included."""
    mantissa = magnitude & _MANTISSA64
    single = (mantissa & (mantissa - 1)) == 0
    return tl.where(magnitude > _MANTISSA64, mantissa == 0, single & (magnitude != 0))


@jit
def _is_subnormal_power(magnitude: tl.tensor) -> tl.tensor:
    """Whether FP32 patterns are subnormal powers of two."""
    single = (magnitude & (magnitude - 1)) == 0
    return single & (magnitude != 0) & (magnitude <= _MANTISSA)


@jit
def _binade64(magnitude: tl.tensor) -> tl.tensor:
    """The column of the binade of FP64 patterns, int32."""
    return tl.minimum(tl.maximum((magnitude >> 52) - _BINADE64, 0), _LAST).to(tl.int32)


@jit
def _count_below(
    exponents: tl.tensor,
    window: tl.tensor,
    row: tl.tensor,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Adds those elements of a tile that lie below a window to the row, window by window."""
    below = tl.where(exponents < (window << 23), exponents, 0)
    rest = largest(below)
    while rest > 0:
        low = tl.maximum((rest >> 23) - (_WINDOW - 1), 0)
        inside = tl.where(below >= (low << 23), below, 0)
        a, b, c, d, e, f, g, h = count(inside, GROUPS, LANES, WIDTH)
        add_to_row(a, b, c, d, e, f, g, h, low, total(inside == 0), row, True)
        below = below - inside
        rest = largest(below)


@jit
def full(
    base: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    columns: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    part: tl.tensor,
    parts: tl.tensor,
    row: tl.tensor,
    reals: tl.tensor,
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
    """Adds every parts-th tile, from `part` on, to an int64 row and a float64 one."""
    TILE: tl.constexpr = GROUPS * LANES * WIDTH
    INF: tl.constexpr = _INF64 if BYTES == 8 else _INF
    SIGN: tl.constexpr = _SIGN64 if BYTES == 8 else _SIGN
    # Whether the binades reach to FP32's ends.
    WIDE: tl.constexpr = BIAS == 127
    tiles = (tl.full([], TILE - 1, tl.int64) + last) // TILE

    if BYTES == 8:
        amax = tl.full([], 0, tl.int64)
        amin = tl.full([], INF, tl.int64)
    else:
        amax = tl.full([], 0, tl.int32)
        amin = tl.full([], INF, tl.int32)
    zeros = tl.full([], 0, tl.int64)
    others = tl.full([], 0, tl.int64)
    pow2s = tl.zeros((LANES,), tl.int32)
    sums = tl.zeros((LANES,), tl.float64)
    squares = tl.zeros((LANES,), tl.float64)

    # A run of tiles whose exponents lie in [low, high], with the zeros counted among them.
    low = tl.full([], _LAST, tl.int32)
    high = tl.full([], 0, tl.int32)
    length = tl.full([], 0, tl.int32)
    run_zeros = tl.full([], 0, tl.int32)
    none = tl.zeros((LANES,), tl.int64)
    # The eight words of counters, see `binade_counts`: a loop can't carry a tuple in older Tritons.
    a, b, c, d, e, f, g, h = none, none, none, none, none, none, none, none

    tile = tl.full([], 0, tl.int64) + part
    while tile < tiles:
        raw = read(
            base, tile, first, last, columns, row_step, column_step, WALK, GROUPS, LANES, WIDTH
        )
        if BYTES == 8:
            bits = raw
        else:
            bits = as_fp32(raw, BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN)
        zeros -= outside(tile, first, last, TILE)
        top = largest(bits & SIGN)
        if top >= INF:
            add_nonfinite(bits, INF, SIGN, row)
            finite = (bits & SIGN) < INF
            zeros -= TILE - total(finite).to(tl.int64)
            bits = tl.where(finite, bits, 0)
            top = largest(bits & SIGN)
        bottom = smallest(bits & SIGN)
        tile_zeros = tl.full([], 0, tl.int32)
        if bottom == 0:
            empty = (bits & SIGN) == 0
            tile_zeros = total(empty)
            bottom = smallest(tl.where(empty, INF, bits & SIGN))
        zeros += tile_zeros.to(tl.int64)
        amax = tl.maximum(amax, top)
        amin = tl.minimum(amin, bottom)

        if top > 0:
            if BYTES == 8:
                pow2s += in_threads(_is_power64(bits & SIGN).to(tl.int32))
                values = bits.to(tl.float64, bitcast=True)
                sums += in_threads(values)
                squares += in_threads(values * values)
                # From here on FP32 patterns, of which only the binade counts.
                exponents = tl.where((bits & SIGN) == 0, 0, (_binade64(bits & SIGN) << 23) | 1)
                highest = _binade64(top)
                lowest = _binade64(bottom)
            else:
                # Zeros have no mantissa either.
                not_pow2s = in_threads(tl.minimum(bits & _MANTISSA, 1))
                pow2s += GROUPS * WIDTH - not_pow2s
                others -= tile_zeros.to(tl.int64)
                exponents = bits
                highest = top >> 23
                lowest = bottom >> 23
                scale = tl.full([], 127, tl.int32)
                if WIDE:
                    if lowest == 0:
                        pow2s += in_threads(_is_subnormal_power(bits & SIGN).to(tl.int32))
                    if (highest < 127 - _TAME) | (highest > 127 + _TAME):
                        scale = 254 - tl.minimum(tl.maximum(highest, 1), 253)
                if scale == 127:
                    values = bits.to(tl.float32, bitcast=True)
                    own = in_threads(values).to(tl.float64)
                    own_squares = in_threads(values * values).to(tl.float64)
                else:
                    scaled = bits.to(tl.float32, bitcast=True)
                    scaled = scaled * (scale << 23).to(tl.float32, bitcast=True)
                    back = ((1023 + 127 - scale).to(tl.int64) << 52).to(tl.float64, bitcast=True)
                    own = in_threads(scaled).to(tl.float64) * back
                    own_squares = in_threads(scaled * scaled).to(tl.float64) * (back * back)
                sums += own
                squares += own_squares

            window = tl.maximum(lowest, highest - (_WINDOW - 1))
            if (tl.maximum(high, highest) - tl.minimum(low, window) >= _WINDOW) | (length == _RUN):
                add_to_row(a, b, c, d, e, f, g, h, low, run_zeros, row, False)
                a, b, c, d, e, f, g, h = none, none, none, none, none, none, none, none
                low = window
                high = highest
                length = tl.full([], 0, tl.int32)
                run_zeros = tl.full([], 0, tl.int32)
            low = tl.minimum(low, window)
            high = tl.maximum(high, highest)
            length += 1
            if lowest == window:
                i, j, k, m, n, o, p, q = count(exponents, GROUPS, LANES, WIDTH)
                run_zeros += tile_zeros
            else:
                exponents = exponents & _SIGN
                inside = tl.where(exponents >= (window << 23), exponents, 0)
                i, j, k, m, n, o, p, q = count(inside, GROUPS, LANES, WIDTH)
                run_zeros += total(inside == 0)
                _count_below(exponents, window, row, GROUPS, LANES, WIDTH)
            a += i
            b += j
            c += k
            d += m
            e += n
            f += o
            g += p
            h += q
        tile += parts

    add_to_row(a, b, c, d, e, f, g, h, low, run_zeros, row, False)
    tl.atomic_add(row + _ZEROS, zeros, sem="relaxed")
    powers = tl.sum(pow2s, axis=0).to(tl.int64) + others
    tl.atomic_add(row + _POW2S, powers, sem="relaxed")
    patterns = reals.to(tl.pointer_type(tl.int64), bitcast=True)
    tl.atomic_max(patterns + _AMAX, as_float64(amax, BYTES), sem="relaxed")
    tl.atomic_min(patterns + _AMIN, as_float64(amin, BYTES), sem="relaxed")
    tl.atomic_add(reals + _SUM, tl.sum(sums, axis=0), sem="relaxed")
    tl.atomic_add(reals + _SUMSQ, tl.sum(squares, axis=0), sem="relaxed")


@jit
def amax_only(
    base: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    columns: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    part: tl.tensor,
    parts: tl.tensor,
    row: tl.tensor,
    reals: tl.tensor,
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
    """Adds the amax and the non-finite elements of every parts-th tile, from `part` on."""
    TILE: tl.constexpr = GROUPS * LANES * WIDTH
    INF: tl.constexpr = _INF64 if BYTES == 8 else _INF
    SIGN: tl.constexpr = _SIGN64 if BYTES == 8 else _SIGN
    amax = tl.full([], 0, tl.int64 if BYTES == 8 else tl.int32)
    tiles = (tl.full([], TILE - 1, tl.int64) + last) // TILE
    tile = tl.full([], 0, tl.int64) + part
    while tile < tiles:
        raw = read(
            base, tile, first, last, columns, row_step, column_step, WALK, GROUPS, LANES, WIDTH
        )
        if BYTES == 8:
            bits = raw
        else:
            bits = as_fp32(raw, BYTES, MANTISSA, BIAS, LARGEST, HAS_INF, MINUS_ZERO_IS_NAN)
        top = largest(bits & SIGN)
        if top >= INF:
            add_nonfinite(bits, INF, SIGN, row)
            top = largest(tl.where((bits & SIGN) < INF, bits & SIGN, 0))
        amax = tl.maximum(amax, top)
        tile += parts
    patterns = reals.to(tl.pointer_type(tl.int64), bitcast=True)
    tl.atomic_max(patterns + _AMAX, as_float64(amax, BYTES), sem="relaxed")
