"""Which parameters' gradients held NaN or inf, known without waiting for the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from numwatch.taps.parameters import Parameters
from numwatch.taps.parcel import Parcel
from numwatch.taps.placement import local_part


@dataclass(frozen=True)
class _Mark:
    line: int
    position: int
    names: tuple[str, ...]


class Culprits:
    """A flag for each gradient that was looked at, on the device until it travels with the tape."""

    def __init__(self, parameters: Parameters, device: torch.device) -> None:
        self._parameters, self._device = parameters, device
        self._marks: list[_Mark] = []
        self._flags: list[torch.Tensor] = []

    def look(self, line: int, position: int, optimizer: torch.optim.Optimizer) -> None:
        """Flags the parameters whose gradient, scaled or not, is not finite everywhere.

        Args:
            line: Of the tape, for the step under way.
            position: Of the optimizer among all.
            optimizer: Whose parameters they are.
        """
        found = {one.name: one.parameter.grad for one in self._parameters.named(optimizer)}
        gradients = {name: local_part(g) for name, g in found.items() if g is not None}
        gradients = {name: g for name, g in gradients.items() if g.numel()}  # a shard may be empty
        if not gradients:
            return
        # NaN and inf outlast a maximum, which overflows nowhere.
        largest = torch._foreach_norm(list(gradients.values()), math.inf)  # noqa: SLF001  # as in clip_grad_norm_
        flags = torch.stack([n.float().to(self._device, non_blocking=True) for n in largest])
        self._marks.append(_Mark(line, position, tuple(gradients)))
        self._flags.append(~flags.isfinite())

    def send(self) -> "SentCulprits":
        """Sends the flags to the host and starts again."""
        flags, marks = self._flags, self._marks
        self._flags, self._marks = [], []
        return SentCulprits(Parcel([torch.cat(flags)] if flags else []), marks)


class SentCulprits:
    """Flags on their way."""

    def __init__(self, parcel: Parcel, marks: Sequence[_Mark]) -> None:
        self.parcel = parcel
        self._marks = marks

    def found(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """Returns, by line and position, the flagged parameters of what was looked at."""
        found: dict[tuple[int, int], tuple[str, ...]] = {}
        if not self._marks:
            return found
        (flags,) = self.parcel.tensors()
        start = 0
        for mark in self._marks:
            end = start + len(mark.names)
            flagged = flags[start:end].tolist()
            names = tuple(n for n, flag in zip(mark.names, flagged, strict=True) if flag)
            key = (mark.line, mark.position)
            found[key] = tuple(dict.fromkeys((*found.get(key, ()), *names)))
            start = end
        return found
