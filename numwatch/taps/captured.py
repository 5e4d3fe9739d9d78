"""Passes that a CUDA graph captures: no Python runs on replay, so a flag on the device decides."""

import torch
from torch import Tensor

from numwatch.stats import accumulate_gated
from numwatch.taps.buffers import Buffers

_kept: list[tuple[Buffers, Tensor]] = []
"""Graphs write to these for as long as they are replayed, which nobody tells of: for ever."""


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is done to a tensor now is captured into a graph, to be done on replay."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class Captured:
    """What captured passes of one watch share: rows that stay in their place, and a flag.

    The flag, int32 [1], is what each pass reads on the device before it reads its tensor: 0 does
    nothing, 1 takes amax alone, 2 all (see `Mode`).
    """

    def __init__(self) -> None:
        self._flags: dict[torch.device, Tensor] = {}
        self._used: set[torch.device] = set()

    def ready(self, device: torch.device) -> None:
        """Makes a device's flag: nothing can be allocated while a graph is captured."""
        if device not in self._flags:
            with torch.inference_mode(mode=False):
                self._flags[device] = torch.zeros(1, dtype=torch.int32, device=device)

    def add(self, tensor: Tensor, buffers: Buffers, row: int) -> None:
        """Leaves a pass in the graph that is being captured."""
        flag = self._flags[tensor.device]
        if tensor.device not in self._used:
            self._used.add(tensor.device)
            _kept.append((buffers, flag))
            buffers.fixed = True
        accumulate_gated(tensor, buffers.counts, buffers.reals, row, flag)

    def switch(self, mode: int) -> None:
        """Says what captured passes do from now on."""
        for flag in self._flags.values():
            flag.fill_(mode)
