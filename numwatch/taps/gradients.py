"""The hook on a tensor that sees its gradient."""

from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from numwatch.taps.collector import Collector
from numwatch.taps.gate import Gate
from numwatch.taps.hooks import Hook
from numwatch.taps.selection import Tap


class Gradient(Hook):
    """Sees a tensor's gradient when autograd has it, scaled by the loss scale as it is."""

    def __init__(self, index: int, tap: Tap, gate: Gate, collector: Collector) -> None:
        self._index, self._tap, self._gate, self._collector = index, tap, gate, collector

    @property
    def slot(self) -> tuple[Collector, int]:
        """What a gradient goes to, of whose watch; collectors are equal where they are the same."""
        return self._collector, self._index

    def is_on(self, tensor: Tensor) -> bool:
        """Whether a tensor's gradient is seen for this slot already."""
        hooks: Any = tensor._backward_hooks or {}  # noqa: SLF001  # as torch's own handles
        return any(isinstance(hook, Gradient) and hook.slot == self.slot for hook in hooks.values())

    def __call__(self, gradient: Tensor) -> None:
        """Brings it to the collector."""
        if is_compiling():
            return  # of a backward that is compiled itself
        if self._gate.mode:
            with self._gate.watching():
                self._collector.see(self._index, gradient, self._tap)
