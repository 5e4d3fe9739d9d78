"""Every watched dtype as FP64, exactly, on any device and whatever the processor flushes."""

import torch
from torch import Tensor

from numwatch.stats.dtypes import FLOAT8_DTYPES


def widened(x: Tensor) -> Tensor:
    """Returns float64 values equal to x's, FP32 subnormals included.

    A processor that takes those for zero (`torch.set_flush_denormal`) would lose them in `x.to`.
    """
    if x.dtype == torch.float64:
        return x
    if x.dtype in FLOAT8_DTYPES:
        codes = torch.arange(256, dtype=torch.uint8, device=x.device)
        return codes.view(x.dtype).to(torch.float64)[x.view(torch.uint8).long()]
    wide = x.to(torch.float32)
    if x.dtype == torch.float16:
        return wide.to(torch.float64)
    if x.dtype == torch.bfloat16:
        bits = x.view(torch.int16).to(torch.int32) << 16
    else:
        bits = x.view(torch.int32)
    mantissa = bits & 0x007F_FFFF
    subnormal = mantissa.to(torch.float64) * 2.0**-149
    is_normal = bits & 0x7F80_0000 != 0
    return torch.where(is_normal, wide.to(torch.float64), subnormal.copysign(wide))
