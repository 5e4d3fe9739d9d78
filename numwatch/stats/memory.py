"""Memory by its address in compiled loops: no array object is made, typed or kept for a call.

A loop is called with (address, numel, counts, reals, work). `counts` and `reals` are the addresses
of one row, `work` is that of what the loop needs beside. Where `counts` is 0, `address` leads to a
table of `numel` tasks instead, int64 [numel, TASK]: address, numel, counts and reals of each.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped,unused-ignore]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from numwatch.stats.jit import jit

TASK = 4
"""Columns of a table of tasks."""


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def array_at(_: Any, address: Any, numel: Any, dtype: Any) -> Any:
    """The memory at an address as an array [numel]."""
    kind = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = make_array(kind)(context, builder)
        size = context.cast(builder, values[1], signature.args[1], types.intp)
        itemsize = context.get_constant(types.intp, dtype.dtype.bitwidth // 8)
        populate_array(
            array,
            data=builder.inttoptr(values[0], array.data.type),
            shape=[size],
            strides=[itemsize],
            itemsize=itemsize,
            meminfo=None,
        )
        return array._getvalue()  # noqa: SLF001 - as numba's own arrays are made

    return kind(address, numel, dtype), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def prefetch(_: Any, address: Any) -> Any:
    """Asks for a line of memory to be brought near; any address will do."""

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        to_read, near, data = number(0), number(3), number(1)
        builder.call(function, [builder.inttoptr(values[0], byte), to_read, near, data])
        return context.get_dummy_value()

    return types.void(address), generate


@jit
def tasks_in(numel: Any, counts: Any) -> Any:
    """How many tensors a call is about."""
    return 1 if counts else numel


@jit
def task(k: Any, address: Any, numel: Any, counts: Any, reals: Any) -> Any:
    """Address and size of a call's k-th tensor, and the addresses of its row."""
    if counts:
        return address, numel, counts, reals
    table = array_at(address + 8 * TASK * k, TASK, np.int64)
    return table[0], table[1], table[2], table[3]
