"""Around an optimizer's step: what it did to the weights, and what its state then holds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from numwatch.snapshot import UPDATE_ROLE, SlotInfo, format_of_dtype, path_of, role_of
from numwatch.stats import accumulate_group
from numwatch.taps.buffers import Buffers
from numwatch.taps.changes import changes_of, judge, sampled_before
from numwatch.taps.intended import Before
from numwatch.taps.moments import judge_moments, states_of
from numwatch.taps.parameters import Parameters, Updated, has_dense_gradient
from numwatch.taps.parcel import Parcel
from numwatch.taps.placement import placement_of
from numwatch.taps.sent_rows import SentRows
from numwatch.taps.sent_updates import SentUpdates


class UpdateTaps:
    """Measures each optimizer's first turn of a step, where the step is recorded in full.

    Attributes:
        bytes: The most memory that one turn's samples have taken.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._before: dict[int, list[tuple[Updated, Before]]] = {}
        self._done: set[int] = set()
        self._parts: list[SentUpdates] = []
        self._known: dict[str, SlotInfo] = {}
        self._slots: tuple[SlotInfo, ...] = ()
        self.bytes = 0

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

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Samples the weights, and of narrow ones the optimizer's state."""
        if id(optimizer) not in self._done:
            self._before[id(optimizer)] = [
                (updated, sampled_before(optimizer, updated, self._parameters))
                for updated in self._parameters.measured(optimizer)
            ]

    def after_step(self, optimizer: torch.optim.Optimizer, position: int) -> None:
        """Measures what has become of them, all on the device.

        Args:
            optimizer: The optimizer.
            position: Which of all it is.
        """
        remembered = self._before.pop(id(optimizer), [])
        self._done.add(id(optimizer))
        stepped = [pair for pair in remembered if has_dense_gradient(pair[0].parameter)]
        if not stepped:
            return
        changes = changes_of(optimizer, stepped, self._parameters)
        states = states_of(optimizer, [updated for updated, _ in stepped], self._parameters)
        owner = type(optimizer).__name__
        rows = [
            *((f"{one.name}:{UPDATE_ROLE}", one.applied) for one in changes),
            *((one.slot, one.state) for one in states),
        ]
        placements = {one.name: placement_of(one.parameter) for one, _ in stepped}
        infos = [
            self._learn(slot, sample, owner, placements[path_of(slot)]) for slot, sample in rows
        ]
        may_skip = isinstance(getattr(optimizer, "found_inf", None), Tensor)
        sent_rows = _sent_rows(infos, [sample for _, sample in rows])
        judged, moments = list(judge(changes)), list(judge_moments(states))
        self._parts.append(SentUpdates(position, may_skip, judged, moments, states, sent_rows))
        held = [one for change in changes for one in (change.before, change.intended)]
        held += [change.applied for change in changes if change.applied is not change.intended]
        held += [tensor for _, before in stepped for tensor in before.tensors()]
        held += sent_rows.parcel.tensors()
        self.bytes = max(self.bytes, sum(tensor.nbytes for tensor in held))

    def take(self) -> list[SentUpdates]:
        """Returns what was measured in the step, on its way to the host."""
        parts, self._parts = self._parts, []
        return parts

    def _learn(self, slot: str, sample: Tensor, owner: str, placement: str | None) -> SlotInfo:
        if slot not in self._known:
            dtype = str(sample.dtype).removeprefix("torch.")
            self._known[slot] = SlotInfo(
                slot=slot,
                module=path_of(slot),
                role=role_of(slot),
                module_class=owner,
                shape=tuple(sample.shape),
                dtype=dtype,
                format=format_of_dtype(dtype),
                placement=placement,
            )
        return self._known[slot]


def _sent_rows(infos: Sequence[SlotInfo], samples: Sequence[Tensor]) -> SentRows:
    devices: dict[torch.device, Buffers] = {}
    for device in dict.fromkeys(sample.device for sample in samples):
        buffers = devices[device] = Buffers(len(samples), device)
        own = [index for index, sample in enumerate(samples) if sample.device == device]
        tensors = [samples[index] for index in own]
        accumulate_group(tensors, own, buffers.counts, buffers.reals, full=True)
    parcel = Parcel([buffers.packed for buffers in devices.values()], owned=True)
    names = tuple(info.slot for info in infos)
    return SentRows(parcel, names, np.zeros(len(names), dtype=bool), {}, full=True)
