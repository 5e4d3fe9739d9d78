"""What Adam-like optimizers make of a gradient: how its second moment stands to it and to eps."""

import torch
from torch import Tensor

from numwatch.stats.compiled import has_loops

MOMENTS = ("touched", "below_eps", "with_gradient", "vanished", "rms_squared")
"""Columns of `second_moment_figures`."""


def second_moment_figures(v: Tensor, gradient: Tensor, eps: Tensor, correction: Tensor) -> Tensor:
    """Returns `MOMENTS` of k parameters: FP64 [k, 5], on their device.

    All but the last are counts: elements that had a gradient ever (an embedding's unused rows had
    none), those of them with sqrt(v) < eps; finite non-zero gradients, those of them with v = 0.
    `rms_squared` is mean(g^2 / max(v, eps^2)) (Wortsman et al. 2023,
    section 3.4), NaN where there is nothing to divide by: v and eps are both 0.

    Args:
        v: Second moments as the optimizer keeps them after its step, [k, n].
        gradient: The gradients it was given, [k, n].
        eps: FP64 [k].
        correction: What the optimizer divides v by before it takes the root (1 - beta2^t), FP64
            [k]; 1 where it does not.
    """
    wide = torch.float64 in (v.dtype, gradient.dtype)  # the loop is of FP32
    loops = v.is_cpu and v.numel() and not wide and has_loops()
    figures = by_loops if loops else by_operations
    return figures(v, gradient, eps, correction)


def by_loops(v: Tensor, gradient: Tensor, eps: Tensor, correction: Tensor) -> Tensor:
    """Does what `second_moment_figures` tells on a CPU, in one pass."""
    from numwatch.stats.moment_loops import sweep_moments

    figures = torch.zeros(len(v), len(MOMENTS), dtype=torch.float64, device="cpu")
    given = (v.float(), gradient.float(), eps, correction, figures)
    sweep_moments(*(one.contiguous().numpy() for one in given))
    return figures


def by_operations(v: Tensor, gradient: Tensor, eps: Tensor, correction: Tensor) -> Tensor:
    """Does the same on any device, in torch's operations."""
    v, gradient = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (v, gradient))
    has_gradient = gradient.isfinite() & (gradient != 0)
    vanished = v == 0
    touched = has_gradient | ~vanished
    corrected = v.double() / correction[:, None]
    eps_squared = eps[:, None].square()
    ratio = gradient.double().square_().div_(corrected.maximum(eps_squared))
    counted = [touched, touched & (corrected < eps_squared), has_gradient, has_gradient & vanished]
    counts = [mask.sum(dim=1, dtype=torch.float64) for mask in counted]
    return torch.stack([*counts, ratio.mean(dim=1)], dim=1)
