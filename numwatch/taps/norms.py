"""The gradients there are, and the norm of an optimizer's."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from numwatch.stats import is_watched_dtype
from numwatch.stats.prepare import dense
from numwatch.taps.placement import is_own


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Returns the L2 norm of an optimizer's gradients as they stand, or None without any.

    None too where one is sparse and not on the host: adding up its duplicates waits for the device.

    FP32 per parameter, so that FP16 squares do not overflow; a 0-d device tensor. Where several
    ranks train, of those that this one answers for: the squares of all ranks' norms add up.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients_of(optimizer):
        if gradient.layout is not torch.strided and gradient.device.type != "cpu":
            return None
        plain = gradient if type(gradient) is Tensor and gradient.layout is torch.strided else None
        by_dtype.setdefault(gradient.dtype, []).append(
            dense(gradient)[0] if plain is None else plain.detach()
        )
    norms = [
        norm
        for dtype, gradients in by_dtype.items()
        for norm in torch._foreach_norm(  # noqa: SLF001  # as torch's own clipping does
            gradients, 2, dtype=torch.promote_types(dtype, torch.float32)
        )
    ]
    if not norms:
        return None
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return norm


def gradients_of(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Yields an optimizer's gradients that can be watched and that this rank answers for."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and is_watched_dtype(gradient.dtype) and is_own(parameter):
                yield gradient


def has_gradients(model: nn.Module) -> bool:
    """Whether some parameter of a model has a gradient just now."""
    return any(parameter.grad is not None for parameter in model.parameters())
