"""On the device: what one tile comes to, [GROUPS, LANES, WIDTH] patterns of one tensor."""

import triton.language as tl

from numwatch.stats import layout
from numwatch.stats.gpu.jit import jit

_NANS = tl.constexpr(layout.NANS)
_POSINFS = tl.constexpr(layout.POSINFS)
_NEGINFS = tl.constexpr(layout.NEGINFS)


@jit
def in_threads(values: tl.tensor) -> tl.tensor:
    """Adds up what each thread holds of a tile: [LANES]."""
    return tl.sum(tl.sum(values, axis=2), axis=1)


@jit
def total(of: tl.tensor) -> tl.tensor:
    """How many of a tile's elements, int32."""
    return tl.sum(in_threads(of.to(tl.int32)), axis=0)


@jit
def largest(magnitude: tl.tensor) -> tl.tensor:
    """The largest of a tile."""
    return tl.max(tl.max(tl.max(magnitude, axis=2), axis=1), axis=0)


@jit
def smallest(magnitude: tl.tensor) -> tl.tensor:
    """The smallest of a tile."""
    return tl.min(tl.min(tl.min(magnitude, axis=2), axis=1), axis=0)


@jit
def add_nonfinite(bits: tl.tensor, INF: tl.constexpr, SIGN: tl.constexpr, row: tl.tensor) -> None:
    """Adds a tile's non-finite elements to the row."""
    magnitude = bits & SIGN
    infinite = magnitude == INF
    neginfs = total(infinite & (bits < 0))
    posinfs = total(infinite) - neginfs
    tl.atomic_add(row + _NANS, total(magnitude > INF).to(tl.int64), sem="relaxed")
    tl.atomic_add(row + _POSINFS, posinfs.to(tl.int64), sem="relaxed")
    tl.atomic_add(row + _NEGINFS, neginfs.to(tl.int64), sem="relaxed")


@jit
def outside(tile: tl.tensor, first: tl.tensor, last: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """How many places of a tile hold no element, int64."""
    start = tl.maximum(tile * TILE, first)
    return TILE - (tl.minimum((tile + 1) * TILE, last) - start)


@jit
def as_float64(pattern: tl.tensor, BYTES: tl.constexpr) -> tl.tensor:
    """The FP64 pattern of a magnitude pattern, which is FP32 of dtypes up to four bytes."""
    if BYTES == 8:
        wide = pattern
    else:
        wide = pattern.to(tl.float32, bitcast=True).to(tl.float64).to(tl.int64, bitcast=True)
    return wide
