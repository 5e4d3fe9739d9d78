"""FP64 sums in lanes of a vector, written out: no compiler makes them beside a store of a count.

A count waits for its store and a sum for its conversion, so that both take little more than one of
them where they stand in one loop.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped,unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
SUMS = 2 * LANES
"""Sums lie as float64 [SUMS] at a multiple of 64: of elements in each lane, then of squares."""
TAKEN = 32
"""Elements that a call adds."""

_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_BYTES = 4 * LANES


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def add_halves(_: Any, address: Any, sums: Any) -> Any:
    """Adds BF16 elements [TAKEN] at an address to sums at another, and their squares."""

    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        taken = []
        for first in (0, _BYTES):
            words = builder.load(_place(builder, values[0], first, _WORDS), align=2)
            # Each word holds two elements, whose bits are the upper ones of an FP32 number.
            low = builder.shl(words, ir.Constant(_WORDS, [16] * LANES))
            high = builder.and_(words, ir.Constant(_WORDS, [0xFFFF_0000] * LANES))
            taken += [builder.bitcast(half, _FLOATS) for half in (low, high)]
        return _add(builder, taken, values[1])

    return types.void(address, sums), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def add_floats(_: Any, address: Any, sums: Any) -> Any:
    """Does the same for FP32 elements."""

    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        places = (_place(builder, values[0], _BYTES * i, _FLOATS) for i in range(TAKEN // LANES))
        return _add(builder, [builder.load(place, align=4) for place in places], values[1])

    return types.void(address, sums), generate


def _add(builder: Any, floats: list[Any], sums: Any) -> Any:
    """Adds four vectors of FP32, by the shortest chain from the sums to the sums."""
    kind = ir.FunctionType(_DOUBLES, [_DOUBLES] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f64")
    a, b, c, d = (builder.fpext(x, _DOUBLES) for x in floats)
    total = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
    ab = builder.call(fma, [b, b, builder.fmul(a, a)])
    cd = builder.call(fma, [d, d, builder.fmul(c, c)])
    for first, more in ((0, total), (8 * LANES, builder.fadd(ab, cd))):
        place = _place(builder, sums, first, _DOUBLES)
        builder.store(builder.fadd(builder.load(place, align=8), more), place, align=8)
    return ir.Constant(ir.IntType(8).as_pointer(), None)


def _place(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    there = builder.add(address, ir.Constant(address.type, offset))
    return builder.inttoptr(there, kind.as_pointer())
