"""The weights of tapped modules: seen when a step begins, and their gradients in its backward."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from numwatch.taps.collector import Collector
from numwatch.taps.fsdp import AtRest, shards_of, weight_at_rest
from numwatch.taps.gate import Gate
from numwatch.taps.selection import Tap
from numwatch.taps.unfrozen import await_gradients, trained_of
from numwatch.taps.weight_hooks import LeafHook, attach_weights


class WeightTaps:
    """Hooks weights for as long as steps are recorded: unlike those of modules, nobody traces them.

    Attributes:
        at_rest: The shards of weights that FSDP2 gathers, while it is asked for.
    """

    def __init__(self, taps: Sequence[Tap], gate: Gate, collector: Collector) -> None:
        self._taps, self._gate, self._collector = taps, gate, collector
        self._hooked: dict[int, LeafHook] = {}
        self._trained: set[int] = set()
        self._awaited: dict[int, RemovableHandle] = {}
        self.at_rest: AtRest = {}

    def look_for_shards(self, model: nn.Module) -> None:
        """Finds the shards of a model whose modules are about to be hooked."""
        self.at_rest = shards_of(model)

    def await_frozen(self) -> None:
        """Looks again, before their forward, at weights that have never required a gradient yet."""
        self._trained |= trained_of(self._taps, self.at_rest)
        rest = [t for t in self._taps if t.slots.get("grad_weight") not in self._trained]
        await_gradients(rest, self._gate, self.attach, self._awaited, self.at_rest)

    def forget_frozen(self) -> None:
        """Takes off the hooks of `await_frozen`, which are modules'."""
        for handle in self._awaited.values():
            handle.remove()
        self._awaited.clear()

    def begin(self) -> None:
        """Begins a step, with what the gate says of it."""
        if not self._gate.mode:
            self.detach()
            return
        self.attach(*self._taps)
        self._collector.see_weights(list(self._weights()))

    def attach(self, *taps: Tap) -> None:
        """Hooks the weights of some modules that require a gradient and are not hooked yet."""
        attach_weights(taps, self._gate, self._collector, self._hooked, self.at_rest, self._trained)

    def detach(self) -> None:
        """Takes the hooks off the weights."""
        for tap in self._taps if self._hooked else ():
            hook = self._hooked.pop(tap.slots.get("grad_weight", -1), None)
            if hook is not None:
                hook.remove(weight_at_rest(tap, self.at_rest))

    def _weights(self) -> Iterator[tuple[int, Tensor, Tap]]:
        for tap in self._taps:
            weight = weight_at_rest(tap, self.at_rest)
            if "weight" in tap.slots and weight is not None and not is_lazy(weight):
                yield tap.slots["weight"], weight, tap
