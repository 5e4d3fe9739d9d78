"""Copies from device to host that nobody waits for."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


class Parcel:
    """Tensors on their way to the host, read when they have arrived.

    From a CUDA device the copies go to pinned memory, on a stream beside the training's, and an
    event tells their arrival; on a CPU they are plain copies and have arrived at once.
    """

    def __init__(self, tensors: Sequence[Tensor], *, owned: bool = False) -> None:
        """Sends tensors as they are now.

        Args:
            tensors: On any devices.
            owned: Whether nobody else will write to them, so that they need not be copied first.
        """
        self._events: list[torch.cuda.Event] = []
        mine = [tensor if owned else tensor.detach().clone() for tensor in tensors]
        self._host = [self._send(tensor) if tensor.is_cuda else tensor for tensor in mine]

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

    def _send(self, tensor: Tensor) -> Tensor:
        stream = _stream_beside(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not used again before the copy is done
        event = torch.cuda.Event()
        event.record(stream)
        self._events.append(event)
        return host


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
