"""Where hooks bring tensors: each is passed over once and adds to its slot's row, on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.snapshot import GRADIENT_ROLES, SlotInfo
from numwatch.stats import (
    accumulate,
    accumulate_amax,
    accumulate_group,
    is_watched_dtype,
    row_writer,
)
from numwatch.taps.buffers import (
    CAST_CALLS,
    CAST_FLUSHED,
    CAST_SATURATED,
    CAST_SCALE,
    Buffers,
)
from numwatch.taps.captured import Captured, is_capturing
from numwatch.taps.casts import operand_casts
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.hooks import autocast_on, is_transformed
from numwatch.taps.operands import OperandTaps, SentBlocks
from numwatch.taps.parcel import Parcel
from numwatch.taps.placement import counts_here, is_dtensor
from numwatch.taps.selection import Tap
from numwatch.taps.sent_rows import SentRows
from numwatch.taps.sightings import Sightings
from numwatch.taps.slots import SlotTable

if TYPE_CHECKING:
    from numwatch.stats.cpu import RowWriter  # numba

Array = npt.NDArray[Any]
_CPU = torch.device("cpu")


class Collector:
    """The rows of all slots in the step under way.

    Attributes:
        table: What has been learnt of each slot's tensors.
        operands: The block counts of GEMM operands.
        compare: Called with the index and tensor of each gradient on full steps; None where there
            is nothing to compare with.
        turn: How many optimizers have had theirs in this step; the loss scale may have changed
            with each.
    """

    def __init__(
        self,
        taps: Sequence[Tap],
        slots: Sequence[SlotInfo],
        gate: Gate,
    ) -> None:
        """Makes empty rows.

        Args:
            taps: The modules.
            slots: Their slots, by index.
            gate: What is recorded.
        """
        self.table = SlotTable(taps, slots)
        n = len(slots)
        self._names = tuple(slot.slot for slot in slots)
        self._scaled = np.array([slot.role in GRADIENT_ROLES for slot in slots], dtype=bool)
        self.operands = OperandTaps(taps, slots)
        self._gate = gate
        self.compare: Callable[[int, Tensor], None] | None = None
        self.turn = 0
        self._turns = [0] * n
        self._sightings = Sightings(n)
        self._buffers: dict[torch.device, Buffers] = {}
        self._captured = Captured()
        self._writer: RowWriter | None = None
        self._quick = [False] * n
        gate.on_switch = self._switch
        self._casts = {
            tap.slots[role]: cast
            for tap in taps
            for role, cast in operand_casts(tap.module).items()
            if role in tap.slots
        }

    @property
    def bytes(self) -> int:
        """Memory the rows take."""
        rows = sum(buffers.packed.nbytes for buffers in self._buffers.values())
        return rows + self.operands.bytes

    def see(self, index: int, tensor: Tensor, tap: Tap) -> None:
        """Adds a tensor to its slot's row.

        Passed by is what has no range (integers, bools) or no memory of its own (nested tensors,
        those that `torch.func` transforms see).
        """
        if self._quick[index] and self._see_plain(index, tensor):
            return
        if not is_watched_dtype(tensor.dtype) or tensor.is_nested or is_transformed(tensor):
            return
        if type(tensor) is not Tensor and not counts_here(tensor):
            return
        if is_capturing(tensor):
            self.capture(index, tensor, tap, autocast_on(tensor.device.type))
        elif self._sightings.follow(index, tensor):
            self._turns[index] = self.turn
            self._see_more(index, tensor, tap, None)
        else:
            self._about_to_pass(index, tensor)
            self._pass(index, tensor, tap, None)

    def _see_plain(self, index: int, tensor: Tensor) -> bool:
        """Does the same by the shortest way for a slot of which nothing is wanted but the row.

        Returns:
            Whether it did; where not, nothing was done.
        """
        writer = self._writer or self._new_writer()
        if writer is None or self.compare is not None or self.operands.due:
            return False
        address, numel = writer.look(tensor)
        sightings = self._sightings
        if not address or sightings.is_followed(index):
            return False
        if not sightings.follow_or_note(index, tensor, address, numel):
            writer.put(address, numel, tensor.dtype, index)
        self._turns[index] = self.turn
        return True

    def _new_writer(self) -> RowWriter | None:
        """Returns what writes to the step's rows on the CPU; None without numba."""
        buffers = self._buffers_on(_CPU)
        full = self._gate.mode is Mode.FULL
        self._writer = row_writer(buffers.counts, buffers.reals, full=full)
        if self._writer is None:
            self._quick = [False] * len(self._quick)
        return self._writer

    def see_compiled(self, index: int, tensor: Tensor, tap: Tap, autocast: str) -> None:
        """Does the same for a tensor that compiled code hands over.

        Compiled code uses memory again without telling torch's version counters, so each tensor
        has a pass of its own.

        Args:
            index: The slot's.
            tensor: What was caught.
            tap: The module.
            autocast: Dtype of the autocast that the module was called under, "" for none.
        """
        if is_watched_dtype(tensor.dtype):
            self._about_to_pass(index, None)
            self._pass(index, tensor, tap, autocast)

    def ready(self, device: torch.device) -> None:
        """Makes what a device's graphs may capture before they are."""
        if device.type == "cuda":
            self._buffers_on(device)
            self._captured.ready(device)

    def capture(self, index: int, tensor: Tensor, tap: Tap, autocast: str) -> None:
        """Has a tensor passed over whenever the graph that is being captured is replayed.

        What full steps want of a slot beside its row is not captured.
        """
        if is_watched_dtype(tensor.dtype):
            self._captured.add(tensor, self._buffers_on(tensor.device), index)
            self._learn(index, tensor, tap, autocast)

    def see_weights(self, weights: Sequence[tuple[int, Tensor, Tap]]) -> None:
        """Adds many tensors, each to the row of a slot that has seen nothing in this step."""
        groups: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
        full = self._gate.mode is Mode.FULL
        for index, weight, tap in weights:
            if not is_watched_dtype(weight.dtype) or not counts_here(weight):
                continue
            tensors, rows = groups.setdefault(weight.device, ([], []))
            tensors.append(weight)
            rows.append(index)
            self._sightings.note(index, weight, tap.find_weight)
            self._see_more(index, weight, tap, None)
        for device, (tensors, rows) in groups.items():
            buffers = self._buffers_on(device)
            accumulate_group(tensors, rows, buffers.counts, buffers.reals, full=full)

    def send(self) -> tuple[SentRows, SentBlocks | None]:
        """Sends the rows to the host in one packed copy a device, and starts empty ones.

        Block rows travel beside them on the steps that count blocks.
        """
        blocks = self.operands.send(self._turns)
        packed = [buffers.release() for buffers in self._buffers.values()]
        rows = SentRows(
            Parcel(packed, owned=True),
            self._names,
            self._scaled,
            dict(self.table.cast_formats),
            self._turns,
            self._sightings.take(),
            full=self._gate.mode is Mode.FULL,
        )
        self._turns, self.turn = [0] * len(self._turns), 0
        self._writer = None
        return rows, blocks

    def drop_rows(self) -> None:
        """Lets go of the rows of a step that does not end, but for those that graphs write to."""
        self._buffers = {on: buffers for on, buffers in self._buffers.items() if buffers.fixed}

    def _switch(self, mode: Mode) -> None:
        self._writer = None
        self._captured.switch(mode)

    def _buffers_on(self, device: torch.device) -> Buffers:
        buffers = self._buffers.get(device)
        if buffers is None:
            buffers = self._buffers[device] = Buffers(len(self._turns), device)
        return buffers

    def _about_to_pass(self, index: int, tensor: Tensor | None) -> None:
        """Gives the slots that follow this one its row as it is, before the row changes."""
        for follower in self._sightings.note(index, tensor):
            for buffers in self._buffers.values():
                buffers.merge(follower, index)

    def _pass(self, index: int, tensor: Tensor, tap: Tap, autocast: str | None) -> None:
        self._turns[index] = self.turn
        buffers = self._buffers_on(tensor.device)
        add = accumulate if self._gate.mode is Mode.FULL else accumulate_amax
        add(tensor, buffers.counts, buffers.reals, index)
        self._see_more(index, tensor, tap, autocast)

    def _see_more(self, index: int, tensor: Tensor, tap: Tap, autocast: str | None) -> None:
        """What is wanted of a slot beside its row, and what there is to learn of it once."""
        if self._gate.mode is Mode.FULL:
            if self.operands.due:
                self.operands.see(index, tensor)
            if index in self._casts and not is_dtensor(tensor):  # whose scale takes all shards
                row = self._buffers_on(tensor.device).casts[index]
                self._see_cast(index, tensor.detach(), row)
            if self.compare is not None and self._scaled[index]:
                self.compare(index, tensor.detach())
        self._learn(index, tensor, tap, autocast)

    def _see_cast(self, index: int, tensor: Tensor, row: Tensor) -> None:
        name, scale, flushed, saturated = self._casts[index](tensor)
        self.table.cast_formats[index] = name
        row[CAST_SCALE] = scale
        row[CAST_FLUSHED] += flushed
        row[CAST_SATURATED] += saturated
        row[CAST_CALLS] += 1

    def _learn(self, index: int, tensor: Tensor, tap: Tap, autocast: str | None) -> None:
        if self.table.is_new(index):
            self.table.learn(index, tensor, tap, autocast)
            self._quick[index] = tensor.is_cpu and index not in self._casts
