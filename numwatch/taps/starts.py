"""How things stood when a micro-batch began: random numbers, and buffers that steps change."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from numwatch.taps.generators import Generators, RandomStates

LIMIT = 1 << 26
"""Bytes of buffers that are copied at most."""


@dataclass(frozen=True, eq=False)
class Start:
    """How things stood when a micro-batch began.

    Attributes:
        random: Every random generator.
        buffers: Copies of the buffers that the step changes, by name.
        versions: How often each tensor of the batch had been written to.
    """

    random: RandomStates
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    versions: tuple[int, ...] = ()

    def restore(self, model: nn.Module) -> None:
        """Puts the generators where they stood, and a copy's buffers too."""
        self.random.set()
        own = dict(model.named_buffers())
        for name, buffer in self.buffers.items():
            if name in own and own[name].shape == buffer.shape:
                own[name].copy_(buffer)


class Starts:
    """Takes a `Start` at each micro-batch, without waiting for the device.

    A first one copies all buffers, up to `LIMIT`; from then on only those are copied that steps
    really write to, into the memory of the copies before.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._generators = Generators(tensor.device for tensor in tensors)
        self._owners = [
            (f"{path}.{name}" if path else name, module, name)
            for path, module in model.named_modules()
            for name in dict(module._buffers.items())  # noqa: SLF001  # buffers() walks all modules
        ]
        self._versions: dict[str, int] | None = None
        # Of these torch counts no changes.
        self._changing = {name for name, module, _ in self._owners if _keeps_statistics(module)}
        self._copies: dict[str, Tensor] = {}

    def take(self, versions: tuple[int, ...] = ()) -> Start:
        """Returns how things stand; it holds until the next is taken."""
        return Start(self._generators.take(), self._take_buffers(), versions)

    def _take_buffers(self) -> dict[str, Tensor]:
        versions: dict[str, int] = {}
        wanted: dict[str, Tensor] = {}
        known = self._versions
        for name, module, key in self._owners:
            buffers = module._buffers  # noqa: SLF001  # as above
            buffer = buffers[key] if key in buffers else None  # noqa: SIM401  # a script's have no `get`
            if buffer is None or buffer.is_inference():
                continue
            if name not in self._changing:
                versions[name] = buffer._version  # noqa: SLF001  # torch's own count of writes
                if known is not None and known.get(name) == versions[name]:
                    continue
            if known is not None:
                self._changing.add(name)  # it only grows: some are written to every other step
            wanted[name] = buffer
        self._versions = versions
        return self._copied(wanted)

    def _copied(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies: dict[str, Tensor] = {}
        again: list[tuple[Tensor, Tensor]] = []
        left = LIMIT
        with torch.inference_mode(mode=False):
            for name, buffer in buffers.items():
                left -= buffer.nbytes
                if left < 0 or buffer.layout is not torch.strided:
                    continue
                old = self._copies.get(name)
                if old is not None and _are_alike(old, buffer):
                    again.append((old, buffer))
                    copies[name] = old
                else:
                    copies[name] = buffer.detach().clone()
            if again:
                olds, news = zip(*again, strict=True)
                torch._foreach_copy_(olds, news)  # one call for them all
        self._copies = copies
        return copies


def _are_alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)  # noqa: SLF001  # their common base


def versions_of(tensors: list[Tensor]) -> tuple[int, ...]:
    """Returns how often each tensor has been written to in place; -1 where torch does not count."""
    return tuple(-1 if t.is_inference() else t._version for t in tensors)  # noqa: SLF001
