"""On the device: one tile of a tensor, read once, as FP32 bit patterns.

A tile is [LANES, GROUPS, WIDTH]: WIDTH elements that lie together make one vector load of a
thread, LANES threads read beside each other, and do so GROUPS times. Triton deals the elements out
to threads in this order of dimensions, so that only the first crosses threads.
"""

import triton.language as tl

from numwatch.stats.gpu.jit import jit
from numwatch.stats.gpu.place import FLAT, ROWS

_FLAT = tl.constexpr(FLAT)
_ROWS = tl.constexpr(ROWS)
_INF = tl.constexpr(0x7F80_0000)
_NAN = tl.constexpr(0x7FC0_0000)


@jit
def pointer(address: tl.tensor, BYTES: tl.constexpr, ALIGNED: tl.constexpr) -> tl.tensor:
    """An address, a multiple of ALIGNED, as a pointer to integers of so many bytes."""
    address = address.to(tl.int64)
    if BYTES == 8:
        base = address.to(tl.pointer_type(tl.int64))
    elif BYTES == 4:
        base = address.to(tl.pointer_type(tl.int32))
    elif BYTES == 2:
        base = address.to(tl.pointer_type(tl.int16))
    else:
        base = address.to(tl.pointer_type(tl.uint8))
    return tl.multiple_of(base, ALIGNED)


@jit
def _divided(place: tl.tensor, columns: tl.tensor, last: tl.tensor) -> tl.tensor:
    """Row and column of places, int64; divided as int32 where that is wide enough."""
    if last.dtype == tl.int32:
        # A last tile reaches beyond the tensor, but not beyond 2^32.
        row = (place.to(tl.uint32) // columns.to(tl.uint32)).to(tl.int64)
    else:
        row = place // columns
    return row, place - row * columns


@jit
def read(
    base: tl.tensor,
    tile: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    columns: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    WALK: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """The patterns of one tile, zero at places before `first` and from `last` on.

    Offsets are int64: a tensor may have more than 2^31 elements, or lie as far apart.
    """
    start = tile * (GROUPS * LANES * WIDTH)
    group = tl.arange(0, GROUPS)[None, :, None] * LANES + tl.arange(0, LANES)[:, None, None]
    own = tl.arange(0, WIDTH)[None, None, :]
    if WALK == _FLAT:
        pointers = base + start + (group * WIDTH + own)
    elif WALK == _ROWS:
        # Divides once a group.
        row, column = _divided(start + group * WIDTH, columns, last)
        pointers = base + tl.multiple_of(row * row_step + column, (1, 1, WIDTH)) + own
    else:
        row, column = _divided(start + (group * WIDTH + own), columns, last)
        pointers = base + (row * row_step + column * column_step)
    if (start >= first) & (start + GROUPS * LANES * WIDTH <= last):
        raw = tl.load(pointers)
    else:
        place = start + (group * WIDTH + own)
        raw = tl.load(pointers, mask=(place >= first) & (place < last), other=0)
    return raw


@jit
def as_fp32(
    raw: tl.tensor,
    BYTES: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    LARGEST: tl.constexpr,
    HAS_INF: tl.constexpr,
    MINUS_ZERO_IS_NAN: tl.constexpr,
) -> tl.tensor:
    """The FP32 patterns, int32, of the same values; of dtypes up to four bytes."""
    if BYTES == 4:
        bits = raw
    elif BYTES == 2:
        if MANTISSA == 7:
            bits = raw.to(tl.int32) << 16
        else:
            bits = raw.to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
    else:
        # As the fields of an FP32 number whose exponent is off by the difference of the biases:
        # a multiplication puts that right, of subnormals too, and exactly.
        code = raw.to(tl.int32)
        magnitude = code & 0x7F
        shifted = (magnitude << (23 - MANTISSA)).to(tl.float32, bitcast=True)
        scale = tl.full([], (254 - BIAS) << 23, tl.int32).to(tl.float32, bitcast=True)
        bits = (shifted * scale).to(tl.int32, bitcast=True)
        if HAS_INF:
            bits = tl.where(magnitude > LARGEST, _NAN, bits)
            bits = tl.where(magnitude == LARGEST + 1, _INF, bits)
        elif LARGEST < 0x7F:
            bits = tl.where(magnitude > LARGEST, _NAN, bits)
        if MINUS_ZERO_IS_NAN:
            bits = tl.where(code == 0x80, _NAN, bits)
        bits = bits | ((code & 0x80) << 24)
    return bits
