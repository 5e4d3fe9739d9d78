"""The fixed systematic sample of a tensor that is too large to be compared whole."""

import math
from functools import cache

from torch import Tensor

SAMPLES = 65_536
"""Elements of a tensor that are looked at, at most."""


@cache
def stride_of(shape: tuple[int, ...], limit: int | None) -> int:
    """Returns the step between sampled elements, in the order of the flattened tensor.

    The least that leaves at most `limit` elements and shares no factor with any dimension: one that
    did would meet the same few columns in every row. 1 takes all, as does no limit.
    """
    numel = math.prod(shape)
    if limit is None or numel <= limit:
        return 1
    stride = -(-numel // limit)
    while any(math.gcd(stride, size) > 1 for size in shape if size > 1):
        stride += 1
    return stride


def sampled(tensor: Tensor, limit: int | None = SAMPLES) -> Tensor:
    """Returns the sample [n] of a tensor, n <= `limit`: always the same elements for a shape.

    A view where the tensor is contiguous, else a copy. It is detached.
    """
    return tensor.detach().reshape(-1)[:: stride_of(tuple(tensor.shape), limit)]
