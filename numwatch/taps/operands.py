"""The block counts of GEMM operands, taken on some of the steps with full rows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from numwatch.block_rows import OPERANDS, BlockRows
from numwatch.snapshot import SlotInfo
from numwatch.stats import accumulate_blocks, new_block_rows
from numwatch.taps.parcel import Parcel
from numwatch.taps.selection import Tap


class OperandTaps:
    """The block rows of all operands in the step under way; memory is taken when one is due.

    Attributes:
        due: Whether the step under way counts blocks.
    """

    def __init__(self, taps: Sequence[Tap], slots: Sequence[SlotInfo]) -> None:
        self.due = False
        indices = [
            tap.slots[role] for tap in taps if tap.gemm for role in OPERANDS if role in tap.slots
        ]
        self._indices = sorted(indices)
        self._place = {index: place for place, index in enumerate(self._indices)}
        self._names = [slots[index].slot for index in self._indices]
        self._scaled = [slots[index].scaled for index in self._indices]
        self._rows: dict[torch.device, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Memory the rows take."""
        return sum(rows.nbytes for rows in self._rows.values())

    def see(self, index: int, tensor: Tensor) -> None:
        """Adds the blocks of a slot's tensor, where it is an operand and the step counts them."""
        place = self._place.get(index)
        if not self.due or place is None:
            return
        rows = self._rows.get(tensor.device)
        if rows is None:
            rows = new_block_rows(len(self._indices), tensor.device)
            self._rows[tensor.device] = rows
        accumulate_blocks(tensor, rows[place])

    def send(self, turns: Sequence[int]) -> "SentBlocks | None":
        """Sends the rows to the host and starts empty ones; None where the step counts none.

        Args:
            turns: Of each slot, which optimizer's turn it was when the slot was last seen.
        """
        if not self.due:
            return None
        self.due = False
        parcel = Parcel(list(self._rows.values()))
        for rows in self._rows.values():
            rows.zero_()
        turns = [turns[index] for index in self._indices]
        return SentBlocks(parcel, self._names, self._scaled, turns)


class SentBlocks:
    """The block rows of a finished step, on their way."""

    def __init__(
        self, parcel: Parcel, names: Sequence[str], scaled: Sequence[bool], turns: Sequence[int]
    ) -> None:
        self.parcel = parcel
        self._names = names
        self._scaled = np.array(scaled, dtype=bool)
        self._turns = np.array(turns, dtype=np.int64)

    def rows(self, loss_scales: Sequence[float] = (1.0,)) -> BlockRows | None:
        """Unpacks the rows once they have arrived, leaving out operands that were not seen.

        Args:
            loss_scales: At each optimizer's turn in the step; the last holds from there on.
        """
        devices = [rows.numpy() for rows in self.parcel.tensors()]
        if not devices:
            return None
        counts = np.sum(devices, axis=0)
        seen = np.flatnonzero(counts.any(axis=(1, 2))).tolist()
        scales = np.asarray(loss_scales)[np.minimum(self._turns, len(loss_scales) - 1)]
        return BlockRows(
            slots=tuple(self._names[i] for i in seen),
            counts=counts[seen],
            loss_scales=np.where(self._scaled, scales, 1.0)[seen],
        )
