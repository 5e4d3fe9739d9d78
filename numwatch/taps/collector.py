"""Where hooks bring tensors: each is passed over once and adds to its slot's row, on its device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.snapshot import GRADIENT_ROLES, Cast, Rows, SlotInfo, format_of_dtype
from numwatch.stats import accumulate, accumulate_amax, is_watched_dtype, merge_rows
from numwatch.stats.layout import CALLS
from numwatch.taps.buffers import (
    CAST_CALLS,
    CAST_FLUSHED,
    CAST_SATURATED,
    CAST_SCALE,
    Buffers,
    split,
)
from numwatch.taps.casts import operand_casts
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.hooks import is_transformed
from numwatch.taps.operands import OperandTaps, SentBlocks
from numwatch.taps.parcel import Parcel
from numwatch.taps.selection import Tap

Array = npt.NDArray[Any]


class Collector:
    """The rows of all slots in the step under way.

    Attributes:
        operands: The block counts of GEMM operands.
        turn: How many optimizers have had theirs in this step; the loss scale may have changed
            with each.
    """

    def __init__(
        self,
        taps: Sequence[Tap],
        slots: Sequence[SlotInfo],
        gate: Gate,
        compare: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        """Makes empty rows.

        Args:
            taps: The modules.
            slots: Their slots, by index.
            gate: What is recorded.
            compare: Called with the index and tensor of each gradient on full steps.
        """
        self._slots = list(slots)
        self.operands = OperandTaps(taps, slots)
        self._gate = gate
        self._compare = compare
        self._known: tuple[SlotInfo, ...] | None = None
        self._order = 0
        self.turn = 0
        self._turns = [0] * len(self._slots)
        self._buffers: dict[torch.device, Buffers] = {}
        self._casts = {
            tap.slots[role]: cast
            for tap in taps
            for role, cast in operand_casts(tap.module).items()
            if role in tap.slots
        }
        self._cast_formats: dict[int, str] = {}
        # GEMM modules compute in autocast's dtype, which only their forward can tell.
        self._gemms = {index: tap.path for tap in taps if tap.gemm for index in tap.slots.values()}
        self._compute_formats: dict[str, str | None] = {}

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """The slots with what has been learnt of their tensors so far.

        The same object until something new is learnt.
        """
        if self._known is None:
            self._known = tuple(
                replace(slot, format=self._format_of(index, slot)) if slot.dtype else slot
                for index, slot in enumerate(self._slots)
            )
        return self._known

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
        if not is_watched_dtype(tensor.dtype) or tensor.is_nested or is_transformed(tensor):
            return
        tensor = tensor.detach()
        self._turns[index] = self.turn
        buffers = self._buffers.get(tensor.device)
        if buffers is None:
            buffers = self._buffers[tensor.device] = Buffers(len(self._slots), tensor.device)
        if self._gate.mode is Mode.FULL:
            accumulate(tensor, buffers.counts, buffers.reals, index)
            self.operands.see(index, tensor)
            if index in self._casts:
                self._see_cast(index, tensor, buffers.casts[index])
            if self._compare is not None and self._slots[index].scaled:
                self._compare(index, tensor)
        else:
            accumulate_amax(tensor, buffers.counts, buffers.reals, index)
        if self._slots[index].dtype is None:
            self._learn(index, tensor, tap)

    def send(self) -> tuple["SentRows", SentBlocks | None]:
        """Sends the rows to the host in one packed copy a device, and starts empty ones.

        Block rows travel beside them on the steps that count blocks.
        """
        blocks = self.operands.send(self._turns)
        parcel = Parcel([buffers.packed for buffers in self._buffers.values()])
        for buffers in self._buffers.values():
            buffers.reset()
        full = self._gate.mode is Mode.FULL
        turns, self._turns, self.turn = self._turns, [0] * len(self._slots), 0
        rows = SentRows(parcel, self._slots, dict(self._cast_formats), turns, full=full)
        return rows, blocks

    def _see_cast(self, index: int, tensor: Tensor, row: Tensor) -> None:
        name, scale, flushed, saturated = self._casts[index](tensor)
        self._cast_formats[index] = name
        row[CAST_SCALE] = scale
        row[CAST_FLUSHED] += flushed
        row[CAST_SATURATED] += saturated
        row[CAST_CALLS] += 1

    def _learn(self, index: int, tensor: Tensor, tap: Tap) -> None:
        self._known = None
        slot = self._slots[index] = replace(
            self._slots[index],
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            order=self._order,
        )
        self._order += 1
        device = tensor.device.type
        if slot.role in ("input", "output") and torch.is_autocast_enabled(device):
            dtype = str(torch.get_autocast_dtype(device))
            self._compute_formats.setdefault(tap.path, format_of_dtype(dtype))

    def _format_of(self, index: int, slot: SlotInfo) -> str | None:
        if index in self._cast_formats:
            return self._cast_formats[index]
        gemm = self._gemms.get(index)
        if gemm in self._compute_formats:
            return self._compute_formats[gemm]
        return format_of_dtype(slot.dtype) if slot.dtype else None


class SentRows:
    """The rows of a finished step, on their way.

    Attributes:
        names: Names of all slots, by index.
    """

    def __init__(
        self,
        parcel: Parcel,
        slots: Sequence[SlotInfo],
        cast_formats: dict[int, str],
        turns: Sequence[int] = (),
        *,
        full: bool,
    ) -> None:
        self.parcel = parcel
        self.names = [slot.slot for slot in slots]
        self._scaled = np.array([slot.role in GRADIENT_ROLES for slot in slots], dtype=bool)
        self._cast_formats = cast_formats
        self._turns = np.array(turns or [0] * len(slots), dtype=np.int64)
        self._full = full

    def rows(self, loss_scales: Sequence[float] = (1.0,)) -> Rows:
        """Unpacks the rows once they have arrived, leaving out slots that saw nothing.

        Args:
            loss_scales: At each optimizer's turn in the step; the last holds from there on.
        """
        counts, reals, casts = self._merged()
        scales = np.asarray(loss_scales)[np.minimum(self._turns, len(loss_scales) - 1)]
        seen = np.flatnonzero(counts[:, CALLS])
        return Rows(
            slots=tuple(self.names[i] for i in seen),
            counts=counts[seen],
            reals=reals[seen],
            loss_scales=np.where(self._scaled, scales, 1.0)[seen],
            casts=tuple(self._cast(int(i), casts[i]) for i in seen),
            full=self._full,
        )

    def _merged(self) -> tuple[Array, Array, Array]:
        n = len(self.names)
        devices = [split(packed, n) for packed in self.parcel.tensors()]
        if not devices:
            devices = [split(Buffers(n, torch.device("cpu")).packed, n)]
        counts, reals, casts = devices[0]
        for more_counts, more_reals, more_casts in devices[1:]:
            merge_rows(counts, reals, more_counts, more_reals)
            casts += more_casts  # a slot's casts run on one device, the others hold zeros
        return counts.numpy(), reals.numpy(), casts.numpy()

    def _cast(self, index: int, row: Array) -> Cast | None:
        if not row[CAST_CALLS]:
            return None
        return Cast(
            self._cast_formats[index],
            scale=float(row[CAST_SCALE]),
            flushed=int(row[CAST_FLUSHED]),
            saturated=int(row[CAST_SATURATED]),
        )
