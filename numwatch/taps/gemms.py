"""Matrix products as a dispatch mode sees them: their M, N and K, and how their operands lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

FORWARD, DGRAD, WGRAD = "forward", "dgrad", "wgrad"

# Where in an operation's tensors its two matrices are.
_OPERANDS = {
    "mm": 0,
    "bmm": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addbmm": 1,
    "_addmm_activation": 1,
    "_scaled_mm": 0,
    "_int_mm": 0,
}


@dataclass(frozen=True)
class Product:
    """A matrix product [m, k] · [k, n], or a batch of them.

    Attributes:
        contiguous: Whether both operands lie row by row or column by column, as BLAS takes them
            without a copy. A transposed view of a contiguous matrix does.
        places: Where the two operands lie; once one is freed, no other tensor has its place.
    """

    m: int
    n: int
    k: int
    contiguous: bool
    places: tuple[object, object] = (None, None)


def product_of(name: str, tensors: Sequence[Tensor]) -> Product | None:
    """Returns the product an operation of this name computes, None where it is none."""
    at = _OPERANDS.get(name)
    if at is None or len(tensors) < at + 2:
        return None
    left, right = tensors[at], tensors[at + 1]
    return Product(
        left.shape[-2],
        right.shape[-1],
        left.shape[-1],
        contiguous=is_blas_layout(left) and is_blas_layout(right),
        places=(_place(left), _place(right)),
    )


def _place(tensor: Tensor) -> object:
    # An address alone is soon another tensor's; a storage that is referred to weakly is not.
    if tensor.layout is not torch.strided:
        return object()
    return StorageWeakRef(tensor.untyped_storage()), tensor.data_ptr()


def gradient_kind(forward: Product | None, gradient: Product) -> str | None:
    """Returns whether a product in backward is the dgrad or the wgrad of a forward product.

    With C = A·B the dgrad is that of A, sums over n and reads B; the wgrad is that of B, sums over
    m and reads A. Either may have been computed transposed.

    Args:
        forward: The product whose gradient it is, None where not known.
        gradient: The product in backward.
    """
    if forward is None:
        return None
    outer = {gradient.m, gradient.n}
    dgrad = gradient.k == forward.n and outer == {forward.m, forward.k}
    wgrad = gradient.k == forward.m and outer == {forward.n, forward.k}
    if dgrad and wgrad:  # m = n: the operand it reads tells, unless it was computed anew
        dgrad = forward.places[1] in gradient.places
        wgrad = forward.places[0] in gradient.places
    return DGRAD if dgrad else WGRAD if wgrad else None


def is_blas_layout(matrix: Tensor) -> bool:
    """Whether the last two dimensions have one of stride 1 and another that steps over it whole."""
    if matrix.dim() < 2:  # noqa: PLR2004  # a matrix has two
        return True
    rows, columns = matrix.shape[-2:]
    down, along = matrix.stride()[-2:]
    by_row = (along == 1 or columns == 1) and (down >= columns or rows == 1)
    by_column = (down == 1 or rows == 1) and (along >= rows or columns == 1)
    return bool(by_row or by_column)
