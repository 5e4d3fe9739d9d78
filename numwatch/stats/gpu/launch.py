"""The GPU kernel: the same contract as `reference`, counts equal to the last one.

Nothing here waits for the device, reads from it or, but for tensors that must be copied first,
allocates on it.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from numwatch.stats.dtypes import LAYOUTS
from numwatch.stats.gpu import kernels
from numwatch.stats.gpu.place import ALIGNMENT, STEPS, Place, load_width, place

LANES = 128
"""Threads of a program."""
EACH = 32
"""Elements of a tile that are one thread's."""
_WARPS = LANES // 32
_PROGRAMS = 4
"""Programs of one multiprocessor, whose 65536 registers they share."""
_REGISTERS = {"maxnreg": 65536 // (LANES * _PROGRAMS)} if torch.version.hip is None else {}
"""Left to itself the compiler takes all that a thread may have, and one program fits less."""

FUSED = {"enable_fp_fusion": True}
"""Said aloud: Triton 3.9 warns where it is not. What is fused is exact until it is added."""


def accumulate(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds what x shows to one row of int64 [n, COUNTS] and float64 [n, REALS]; see `reference`.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    _sweep(place(x), counts, reals, row, kernels.FULL, counts)


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds x's finite amax, numel and non-finite counts alone to one row; see `reference`."""
    _sweep(place(x), counts, reals, row, kernels.AMAX_ONLY, counts)


def accumulate_gated(x: Tensor, counts: Tensor, reals: Tensor, row: int, gate: Tensor) -> None:
    """Adds to one row what a gate, int32 [1] on x's device, says when the kernel runs.

    0: nothing, and x is not read; 1: as `accumulate_amax`; 2: as `accumulate`. Captured in a CUDA
    graph, it follows the gate on every replay.
    """
    _sweep(place(x), counts, reals, row, kernels.GATED, gate)


def _sweep(x: Place, counts: Tensor, reals: Tensor, row: int, mode: int, gate: Tensor) -> None:
    tensor = x.tensor
    with on(tensor.device):
        kernels.sweep[(programs(x.last, tensor.device),)](
            x.address or ALIGNMENT,  # never read: an empty tensor has none
            x.first,
            x.last,
            x.columns,
            x.row_step,
            x.column_step,
            x.left_out,
            counts,
            reals,
            row,
            gate,
            MODE=mode,
            WALK=x.walk,
            **tiling(tensor.dtype, 1 if x.walk == STEPS else load_width(tensor.itemsize)),
        )


def tiling(dtype: torch.dtype, width: int) -> dict[str, Any]:
    """The constants of a kernel for a dtype, whose threads load `width` elements at once."""
    return {
        "GROUPS": EACH // width,
        "LANES": LANES,
        "WIDTH": width,
        "num_warps": _WARPS,
        **_REGISTERS,
        **FUSED,
        **bit_layout(dtype),
    }


def bit_layout(dtype: torch.dtype) -> dict[str, Any]:
    """How a dtype lies in an integer, as a kernel's constants."""
    layout = LAYOUTS[dtype]
    return {
        "BYTES": dtype.itemsize,
        "MANTISSA": layout.mantissa_bits,
        "BIAS": layout.bias,
        "LARGEST": layout.largest,
        "HAS_INF": layout.has_inf,
        "MINUS_ZERO_IS_NAN": layout.negative_zero_is_nan,
    }


def programs(places: int, device: torch.device) -> int:
    """How many programs share the tiles of a tensor."""
    return max(1, min(-(-places // (LANES * EACH)), _PROGRAMS * multiprocessors(device)))


@cache
def multiprocessors(device: torch.device) -> int:
    """How many there are; one, where a CPU interprets."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on(device: torch.device) -> AbstractContextManager[None]:
    """Makes a device the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
