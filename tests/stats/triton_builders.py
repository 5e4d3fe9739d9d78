"""Compiles the GPU kernels for devices that are not here; nothing is launched."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from numwatch.stats.gpu import blocks, kernels
from numwatch.stats.gpu.launch import EACH, FUSED, bit_layout, tiling
from numwatch.stats.gpu.place import load_width

SWEEP = {
    "address": "i64",
    "first": "i32",
    "last": "i32",
    "columns": "i32",
    "row_step": "i32",
    "column_step": "i32",
    "left_out": "i32",
    "counts": "*i64",
    "reals": "*fp64",
    "row": "i32",
    "gate": "*i32",
}
GROUP = {"table": "*i64", "counts": "*i64", "reals": "*fp64"}
BLOCKS = {
    "address": "i64",
    "rows": "i32",
    "columns": "i32",
    "row_step": "i32",
    "column_step": "i32",
    "counts": "*i64",
}
OPTIONS = ("num_warps", "maxnreg", *FUSED)


def compiled(kernel, types, constants, capability):
    """What Triton makes of a kernel: `.asm` holds ttgir, ptx and cubin."""
    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def sweep(dtype, mode, walk, capability, wide=False, each=EACH):
    """Of `each` elements a thread: PTX takes more than twice as long to make of twice as many."""
    width = 1 if walk == 2 else load_width(dtype.itemsize)
    types = SWEEP | ({"last": "i64", "columns": "i64"} if wide else {})
    constants = {"MODE": mode, "WALK": walk, **tiling(dtype, width), "GROUPS": each // width}
    return compiled(kernels.sweep, types, constants, capability)


def group(dtype, mode, capability, each=EACH):
    width = load_width(dtype.itemsize)
    constants = {"MODE": mode, **tiling(dtype, width), "GROUPS": each // width}
    return compiled(kernels.sweep_group, GROUP, constants, capability)


def block(dtype, turned, capability):
    constants = {"TURNED": turned, **bit_layout(dtype), **FUSED}
    return compiled(blocks.count_tile, BLOCKS, constants, capability)
