"""Around an optimizer's step: what it did to the weights, and what its state then holds."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from numwatch.snapshot import UPDATE_ROLE, SlotInfo, format_of_dtype, path_of, role_of
from numwatch.stats import accumulate_rows
from numwatch.stats.dtypes import dtype_name
from numwatch.taps.buffers import Buffers
from numwatch.taps.changes import Judged, Weights, changes_of, judge, weights_before
from numwatch.taps.given import Given
from numwatch.taps.moments import States, samples_of, states_of
from numwatch.taps.parameters import Parameters, Updated
from numwatch.taps.parcel import Parcel
from numwatch.taps.sent_rows import SentRows
from numwatch.taps.sent_updates import JudgedStates, SentUpdates


class UpdateTaps:
    """Measures each optimizer's first turn of a step, where the step is recorded in full.

    Attributes:
        given: The gradients it was stepped by.
        unsure: Who was told to skip steps and not given, so that nobody knows which; else None.
        bytes: The most memory that one turn's samples have taken.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.given = Given(parameters)
        self._before: dict[int, list[Weights]] = {}
        self._done: set[int] = set()
        self._parts: list[SentUpdates] = []
        self._known: dict[str, SlotInfo] = {}
        self._slots: tuple[SlotInfo, ...] = ()
        self._unreadable: dict[bool, dict[str, None]] = {}
        self._told: set[bool] = set()
        self.bytes = 0
        self.unsure: str | None = None

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """Every slot of a parameter seen so far; the same object until there is a new one."""
        if len(self._slots) != len(self._known):
            self._slots = tuple(self._known.values())
        return self._slots

    def reset(self) -> None:
        """Starts a step, or ends one whose optimizer was skipped."""
        self._before.clear()
        self._done.clear()
        self.given.forget()

    def see_gradients(self, optimizer: torch.optim.Optimizer, *, has_closure: bool = False) -> None:
        """Looks at the gradients before a turn, which may be gone when it is over."""
        if id(optimizer) not in self._done:
            self.given.look(optimizer, has_closure=has_closure)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Samples the weights, and of narrow ones the optimizer's state."""
        if id(optimizer) not in self._done:
            self._before[id(optimizer)] = weights_before(optimizer, self._parameters)

    def after_step(self, optimizer: torch.optim.Optimizer, position: int | None) -> None:
        """Measures what has become of them, all on the device.

        Args:
            optimizer: The optimizer.
            position: Which of all it is; None of one that was not given.
        """
        remembered = self._before.pop(id(optimizer), [])
        self._look_for_unreadable(optimizer)
        self._done.add(id(optimizer))
        given = self.given
        stepped = [kept for one in remembered if (kept := one.where(given.has)).members]
        if remembered:
            given.learn(optimizer, [one for weights in stepped for one in weights.members])
        may_skip = isinstance(getattr(optimizer, "found_inf", None), Tensor)
        if may_skip and position is None:
            self.unsure = type(optimizer).__name__
            return
        if not stepped:
            return
        states = states_of(optimizer, [one for weights in stepped for one in weights.members])
        rows = _ParameterRows(
            sum(len(weights.members) for weights in stepped)
            + sum(len(one.members) for one in states)
        )
        owner = type(optimizer).__name__
        judged: list[Judged] = []
        largest = 0
        for change in changes_of(optimizer, stepped, given.of):
            slots = [f"{one.name}:{UPDATE_ROLE}" for one in change.members]
            self._learn(slots, change.members, change.applied, owner)
            rows.add(slots, change.applied)
            judged += judge(change)
            largest = max(largest, 3 * change.applied.nbytes)
        moments = []
        for one in states:
            moments.append(self._judge(one, rows, owner))
            largest = max(largest, 2 * sum(t.nbytes for t in moments[-1].figures))
        self._parts.append(SentUpdates(position, may_skip, judged, moments, rows.send()))
        held = sum(t.nbytes for weights in remembered for t in weights.tensors())
        self.bytes = max(self.bytes, held + given.bytes + largest + rows.bytes)
        given.forget()

    def unreadable(self, optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[str]:
        """Yields, once, which trained parameters are not measured for what their elements are.

        Args:
            optimizers: Those that are looked at though they took no step that is known of.
        """
        for optimizer in optimizers:
            self._look_for_unreadable(optimizer)
        for is_complex, found in self._unreadable.items():
            if is_complex in self._told:
                continue
            self._told.add(is_complex)
            names = list(found)
            which = f"{names[0]} and {len(names) - 1} more have" if names[1:] else f"{names[0]} has"
            if is_complex:
                yield f"complex numbers: {which} no rows, updates or part in the gradient norm"
            else:
                yield f"sparse gradients: {which} no updates or state"

    def take(self) -> list[SentUpdates]:
        """Returns what was measured in the step, on its way to the host."""
        parts, self._parts = self._parts, []
        return parts

    def _look_for_unreadable(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at its parameters once a step: sparse gradients may be gone when that ends."""
        if id(optimizer) not in self._done:
            for is_complex, name in self._parameters.unreadable(optimizer):
                self._unreadable.setdefault(is_complex, {})[name] = None

    def _judge(self, states: States, rows: "_ParameterRows", owner: str) -> JudgedStates:
        figures = []
        for some in samples_of(states, self.given.of):
            self._learn(some.slots, some.members, some.values, owner)
            rows.add(some.slots, some.values)
            if some.figures is not None:
                figures.append(some.figures)
        dtype = dtype_name(states.dtype)
        return JudgedStates(states.slots, dtype, states.sampled, states.kind, figures)

    def _learn(
        self, slots: Sequence[str], members: Sequence[Updated], samples: Tensor, owner: str
    ) -> None:
        for slot, one in zip(slots, members, strict=True):
            if slot not in self._known:
                dtype = dtype_name(samples.dtype)
                self._known[slot] = SlotInfo(
                    slot=slot,
                    module=path_of(slot),
                    role=role_of(slot),
                    module_class=owner,
                    shape=tuple(samples.shape[1:]),
                    dtype=dtype,
                    format=format_of_dtype(dtype),
                    placement=one.known.placement,
                    shard=one.known.shard,
                )


class _ParameterRows:
    """The rows of a turn's updates and states, on each device that has some.

    Attributes:
        bytes: Memory they take.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._names: list[str] = []
        self._buffers: dict[torch.device, Buffers] = {}
        self.bytes = 0

    def add(self, names: Sequence[str], samples: Tensor) -> None:
        """Adds samples [k, n] to a row each."""
        device = samples.device
        if device not in self._buffers:
            self._buffers[device] = Buffers(self._n, device)
            self.bytes += self._buffers[device].packed.nbytes
        buffers = self._buffers[device]
        accumulate_rows(samples, len(self._names), buffers.counts, buffers.reals)
        self._names += names

    def send(self) -> SentRows:
        """Sends them to the host."""
        parcel = Parcel([buffers.packed for buffers in self._buffers.values()], owned=True)
        scaled = np.zeros(len(self._names), dtype=bool)
        return SentRows(parcel, tuple(self._names), scaled, {}, full=True)
