"""What of a failed step the host can read in time: without waiting for a device."""

import torch
from torch import Tensor

from numwatch.stats.finite import all_finite
from numwatch.taps.parcel import Parcel


class SeenLoss:
    """The loss that a backward starts from, on its way to the host where it lies on a device."""

    def __init__(self) -> None:
        self._loss: Parcel | float | None = None

    def see(self, loss: Tensor) -> None:
        """Takes a loss of one element; others tell nothing."""
        if loss.numel() == 1:
            loss = loss.detach()
            self._loss = Parcel([loss]) if loss.is_cuda else float(loss)

    def forget(self) -> None:
        """Lets go of it, as at a micro-batch's end."""
        self._loss = None

    @property
    def seen(self) -> bool:
        """Whether there was one, arrived or not."""
        return self._loss is not None

    @property
    def value(self) -> float | None:
        """The loss; None where there is none or it has not arrived."""
        if isinstance(self._loss, Parcel):
            if not self._loss.arrived():
                return None
            (loss,) = self._loss.tensors()
            return float(loss)
        return self._loss


def has_finite_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all gradients that lie on the CPU are finite."""
    gradients = [
        gradient
        for group in optimizer.param_groups
        for parameter in group["params"]
        if (gradient := parameter.grad) is not None and _is_readable(gradient)
    ]
    return all_finite(gradients)


def _is_readable(gradient: Tensor) -> bool:
    """Whether it can be read without waiting for a device."""
    plain = type(gradient) is Tensor and gradient.layout is torch.strided
    return plain and gradient.device.type == "cpu" and gradient.is_floating_point()
