"""On the device: binades counted in registers, 32 of them at a time, and put into a row.

The histogram that Triton offers takes log2(bins) votes and bins / 32 population counts, each with
the logic around it, for every element of a thread: of 32 bins 23 instructions in all, as compiled
for sm_90. Here it is 11 to 13: an element is one shifted bit; eight elements of a thread add their
bits up in 32 counters of four bits, two words of 64; these are widened to 16 bits once for eight
elements, and threads meet only when a row is written. Counters go by the exponent modulo 32, so
that neither zeros nor elements outside need be masked while all exponents of a run lie in 32
binades; what is left over goes round again.
"""

import triton.language as tl

from numwatch.stats.gpu.jit import jit

WINDOW = 32
"""Binades that are counted together."""

_NIBBLES = tl.constexpr(0x0F0F_0F0F_0F0F_0F0F)
_BYTES = tl.constexpr(0x00FF_00FF_00FF_00FF)
_PAIRS = tl.constexpr(0x0000_FFFF_0000_FFFF)
_EIGHT = tl.constexpr(8)
_MARK = tl.constexpr(WINDOW)


@jit
def _bytes(
    nibbles: tl.tensor, GROUPS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr
) -> tl.tensor:
    """Adds up [LANES, GROUPS, WIDTH] words of 4-bit counters: even and odd ones, in bytes."""
    few = tl.sum(nibbles, axis=2)
    if WIDTH < _EIGHT:
        few = tl.sum(tl.reshape(few, (LANES, GROUPS * WIDTH // 8, 8 // WIDTH)), axis=2)
    even = tl.sum(few & _NIBBLES, axis=1)
    odd = tl.sum((few >> 4) & _NIBBLES, axis=1)
    return even, odd


@jit
def count(
    bits: tl.tensor, GROUPS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr
) -> tl.tensor:
    """Counts FP32 patterns [LANES, GROUPS, WIDTH] by their exponent modulo 32.

    Returns eight int64 [LANES]: of residues 0 to 15 those that leave 0, 1, 2, 3 by four, then of 16
    to 31, each with four counters of 16 bits.
    """
    one = tl.full((LANES, GROUPS, WIDTH), 1, tl.int64)
    marks = one << ((bits >> 21) & 60).to(tl.int64)
    upper = tl.where((bits & (16 << 23)) != 0, marks, 0)
    even, odd = _bytes(marks, GROUPS, LANES, WIDTH)
    upper_even, upper_odd = _bytes(upper, GROUPS, LANES, WIDTH)
    even = even - upper_even
    odd = odd - upper_odd
    return (
        even & _BYTES,
        odd & _BYTES,
        (even >> 8) & _BYTES,
        (odd >> 8) & _BYTES,
        upper_even & _BYTES,
        upper_odd & _BYTES,
        (upper_even >> 8) & _BYTES,
        (upper_odd >> 8) & _BYTES,
    )


@jit
def _add(
    word: tl.tensor,
    residue: tl.constexpr,
    low: tl.tensor,
    zeros: tl.tensor,
    row: tl.tensor,
    ONE_TILE: tl.constexpr,
) -> None:
    """Adds four counters of 16 bits a lane, of residue, residue + 4, ..., to the row's binades."""
    fields = tl.arange(0, 4)
    # Of one tile the 16 bits hold the sum over all threads; of more, it takes 32.
    if ONE_TILE:
        total = (tl.sum(word, axis=0) >> (16 * fields).to(tl.int64)) & 0xFFFF
    else:
        first = tl.sum(word & _PAIRS, axis=0)
        second = tl.sum((word >> 16) & _PAIRS, axis=0)
        total = tl.where((fields & 1) == 0, first, second)
        total = tl.where(fields < 2, total & 0xFFFF_FFFF, total >> 32)
    residues = residue + 4 * fields
    total = total - tl.where(residues == 0, zeros, 0)
    binade = low + ((residues - low) & (_MARK - 1))
    tl.atomic_add(row + binade, total, mask=total > 0, sem="relaxed")


@jit
def add_to_row(
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    e: tl.tensor,
    f: tl.tensor,
    g: tl.tensor,
    h: tl.tensor,
    low: tl.tensor,
    zeros: tl.tensor,
    row: tl.tensor,
    ONE_TILE: tl.constexpr,
) -> None:
    """Adds what `count` returned, summed over tiles, to the binades of an int64 row.

    All that was counted lies in the binades [low, low + 32) or is one of so many zeros, which
    stand with residue 0.
    """
    _add(a, 0, low, zeros, row, ONE_TILE)
    _add(b, 1, low, zeros, row, ONE_TILE)
    _add(c, 2, low, zeros, row, ONE_TILE)
    _add(d, 3, low, zeros, row, ONE_TILE)
    _add(e, 16, low, zeros, row, ONE_TILE)
    _add(f, 17, low, zeros, row, ONE_TILE)
    _add(g, 18, low, zeros, row, ONE_TILE)
    _add(h, 19, low, zeros, row, ONE_TILE)
