"""The scalars of the last steps, kept on the device until they travel with the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numwatch.taps.parcel import Parcel

COLUMNS = (
    "loss",
    "lr",
    "grad_norm_squared",
    "loss_scale_before",
    "loss_scale_after",
    "found_inf",
)
CAPACITY = 64


class Tape:
    """One FP64 line of `COLUMNS` a step, on the device."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(mode=False):
            self._lines = torch.zeros(CAPACITY, len(COLUMNS), dtype=torch.float64, device=device)
        self._cells = [line.unbind() for line in self._lines.unbind()]
        self._line = 0
        self._written: set[str] = set()
        self._ended: list[frozenset[str]] = []

    @property
    def full(self) -> bool:
        """Whether the line under way is the last there is room for."""
        return self._line == CAPACITY - 1

    def put(self, column: str, value: Tensor | float) -> None:
        """Writes a value of the step under way, without waiting for the device."""
        cell = self._cells[self._line][COLUMNS.index(column)]
        if isinstance(value, Tensor):
            cell.copy_(value.detach().reshape(()), non_blocking=True)
        else:
            cell.fill_(value)
        self._written.add(column)

    def add(self, column: str, value: Tensor | float) -> None:
        """Adds a value to what the step under way already has in that column."""
        if column not in self._written:
            self.put(column, value)
            return
        cell = self._cells[self._line][COLUMNS.index(column)]
        if isinstance(value, Tensor):
            value = value.detach().reshape(()).to(cell.device, non_blocking=True)
        cell.add_(value)

    def next(self) -> None:
        """Ends the step under way."""
        self._line += 1
        self._ended.append(frozenset(self._written))
        self._written.clear()

    def send(self) -> "SentTape":
        """Sends the lines of all ended steps to the host and starts again."""
        sent = SentTape(Parcel([self._lines[: self._line]]), self._ended)
        self._line = 0
        self._ended = []
        return sent


@dataclass(frozen=True)
class SentTape:
    """The lines of ended steps, on their way."""

    parcel: Parcel
    written: Sequence[frozenset[str]]

    def lines(self) -> list[dict[str, float | None]]:
        """Returns the arrived lines by column; None is "not measured", NaN was measured."""
        (lines,) = self.parcel.tensors()
        return [
            {
                column: value if column in written else None
                for column, value in zip(COLUMNS, line, strict=True)
            }
            for line, written in zip(lines.numpy().tolist(), self.written, strict=True)
        ]
