"""Gradients as the optimizer gets them, where several ranks have reduced them to these."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from numwatch.snapshot import REDUCED_ROLE, SlotInfo, format_of_dtype
from numwatch.stats import accumulate_group
from numwatch.taps.buffers import Buffers
from numwatch.taps.parameters import Parameters
from numwatch.taps.parcel import Parcel
from numwatch.taps.placement import counts_here, is_partial, of_many_ranks, placement_of, shard_of
from numwatch.taps.sent_rows import SentRows


class ReducedGradients:
    """The rows of a step's reduced gradients; none where this is the only rank.

    Before the reduction each rank's own gradient is seen at the weight (`grad_weight`): beside it
    these rows tell what averaging in a narrow format has flushed or overflowed.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._parts: list[SentRows] = []
        self._known: dict[str, SlotInfo] = {}
        self.slots: tuple[SlotInfo, ...] = ()

    def see(self, optimizer: torch.optim.Optimizer, *, full: bool, scaled: bool) -> None:
        """Passes over the gradients of an optimizer, at its turn.

        Args:
            optimizer: The optimizer.
            full: Whether full rows are wanted.
            scaled: Whether the gradients are still multiplied by the loss scale.
        """
        if not of_many_ranks():
            return
        owner = type(optimizer).__name__
        names: list[str] = []
        gradients: list[Tensor] = []
        for one in self._parameters.named(optimizer):
            gradient = one.parameter.grad
            if gradient is not None and counts_here(one.parameter) and not is_partial(gradient):
                names.append(self._learn(one.name, one.parameter, gradient, owner))
                gradients.append(gradient)
        if gradients:
            self._parts.append(_sent(names, gradients, full=full, scaled=scaled))

    def take(self) -> list[SentRows]:
        """Returns the step's rows, on their way to the host."""
        parts, self._parts = self._parts, []
        return parts

    def _learn(self, name: str, parameter: Tensor, gradient: Tensor, owner: str) -> str:
        slot = f"{name}:{REDUCED_ROLE}"
        if slot not in self._known:
            dtype = str(gradient.dtype).removeprefix("torch.")
            self._known[slot] = SlotInfo(
                slot=slot,
                module=name,
                role=REDUCED_ROLE,
                module_class=owner,
                shape=tuple(gradient.shape),
                dtype=dtype,
                format=format_of_dtype(dtype),
                placement=placement_of(parameter),
                shard=shard_of(parameter),
            )
            self.slots = tuple(self._known.values())
        return slot


def _sent(
    names: Sequence[str], gradients: Sequence[Tensor], *, full: bool, scaled: bool
) -> SentRows:
    n = len(names)
    devices: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
    for at, gradient in enumerate(gradients):
        places, own = devices.setdefault(gradient.device, ([], []))
        places.append(at)
        own.append(gradient)
    packed = []
    for device, (places, own) in devices.items():
        buffers = Buffers(n, device)
        accumulate_group(own, places, buffers.counts, buffers.reals, full=full)
        packed.append(buffers.packed)
    domain = np.full(n, scaled)
    return SentRows(Parcel(packed, owned=True), tuple(names), domain, {}, full=full)
