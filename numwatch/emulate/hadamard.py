"""The random Hadamard transform that spreads outliers before a weight gradient's operands round."""

from functools import cache

import torch
from torch import Tensor

SIZE = 16


def transform_rows(matrix: Tensor, seed: int) -> Tensor:
    """Returns H D x for each group of 16 rows of a matrix, FP32; its transpose undoes it.

    D flips signs at random, the same in every group and for every matrix of a seed, and H is the
    Hadamard matrix over 4, so that (H D a)^T (H D b) = a^T b but for rounding. arXiv:2509.25149,
    section 4.2. Rows are filled up with zeros to a multiple of 16.

    Args:
        matrix: [R, C].
        seed: Of the signs.
    """
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix.to(torch.float32), (0, 0, 0, -rows % SIZE))
    groups = padded.reshape(-1, SIZE, columns)
    return torch.matmul(_matrix(seed, matrix.device), groups).reshape(-1, columns)


@cache
def _matrix(seed: int, device: torch.device) -> Tensor:
    hadamard = torch.ones(1, 1)
    while len(hadamard) < SIZE:
        upper = torch.cat([hadamard, hadamard], dim=1)
        lower = torch.cat([hadamard, -hadamard], dim=1)
        hadamard = torch.cat([upper, lower])
    bits = torch.randint(0, 2, (SIZE,), generator=torch.Generator().manual_seed(seed))
    rotation: Tensor = hadamard * (2 * bits - 1) / SIZE**0.5
    return rotation.to(device)
