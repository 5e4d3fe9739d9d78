"""Copies from device to host that nobody waits for."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Parcel:
    """Tensors on their way to the host, read when they have arrived.

    From a CUDA device the copies go to pinned memory and an event tells their arrival; on a CPU
    they are plain copies and have arrived at once.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._host: list[Tensor] = []
        self._events: list[torch.cuda.Event] = []
        for tensor in tensors:
            if tensor.is_cuda:
                host = torch.empty_like(tensor, device="cpu", pin_memory=True)
                host.copy_(tensor, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(tensor.device))
                self._events.append(event)
            else:
                host = tensor.detach().clone()
            self._host.append(host)

    def arrived(self) -> bool:
        """Whether `tensors` can be called; asks the device, never waits for it."""
        return all(event.query() for event in self._events)

    def wait(self) -> None:
        """Waits for the arrival: at the end of a fit only."""
        for event in self._events:
            event.synchronize()

    def tensors(self) -> list[Tensor]:
        """Returns the arrived tensors, on the host, in order."""
        return self._host
