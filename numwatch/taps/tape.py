"""The scalars of the last steps, kept on the device until they travel with the rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numwatch.taps.parcel import Parcel

CAPACITY = 64


_TURN = "loss_scale_at_"


def loss_scale_column(turn: int) -> str:
    """Returns the column of the loss scale at an optimizer's turn; the first is put at `begin`."""
    return f"{_TURN}{turn}"


def is_turn(column: str) -> bool:
    """Whether a column is one of `loss_scale_column`'s."""
    return column.startswith(_TURN)


def found_inf_column(optimizer: int) -> str:
    """Returns the column of what the scaler found in the gradients of one of the optimizers."""
    return f"found_inf_{optimizer}"


def columns_of(optimizers: int) -> tuple[str, ...]:
    """Returns the columns of a step of so many optimizers."""
    return (
        "loss",
        "lr",
        "grad_norm_squared",
        "loss_scale_after",
        *(loss_scale_column(turn) for turn in range(max(optimizers, 1))),
        *(found_inf_column(optimizer) for optimizer in range(optimizers)),
    )


def learning_rate(optimizers: Iterable[torch.optim.Optimizer]) -> Tensor | float | None:
    """Returns the first optimizer's; some have none, or choose it themselves."""
    first = next(iter(optimizers), None)
    groups = [] if first is None else first.param_groups
    lr = groups[0].get("lr") if groups else None
    return lr if isinstance(lr, (Tensor, float, int)) else None


class Tape:
    """One FP64 line a step, on the device, with a value for each of `columns_of`.

    Attributes:
        line: The line under way.
    """

    def __init__(self, device: torch.device, optimizers: int = 1) -> None:
        self._columns = columns_of(optimizers)
        with torch.inference_mode(mode=False):
            self._lines = torch.zeros(
                CAPACITY, len(self._columns), dtype=torch.float64, device=device
            )
        self._cells = [
            dict(zip(self._columns, line.unbind(), strict=True)) for line in self._lines.unbind()
        ]
        self.line = 0
        self._written: set[str] = set()
        self._ended: list[frozenset[str]] = []

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return int(self._lines.nbytes)

    @property
    def full(self) -> bool:
        """Whether the line under way is the last there is room for."""
        return self.line == CAPACITY - 1

    def put(self, column: str, value: Tensor | float) -> None:
        """Writes a value of the step under way, without waiting for the device."""
        cell = self._cells[self.line][column]
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
        cell = self._cells[self.line][column]
        if isinstance(value, Tensor):
            value = value.detach().reshape(()).to(cell.device, non_blocking=True)
        cell.add_(value)

    def value(self, column: str) -> Tensor | None:
        """Returns a value of the step under way, on the device; None where none was written."""
        return self._cells[self.line][column] if column in self._written else None

    def next(self) -> None:
        """Ends the step under way."""
        self.line += 1
        self._ended.append(frozenset(self._written))
        self._written.clear()

    def send(self) -> "SentTape":
        """Sends the lines of all ended steps to the host and starts again."""
        sent = SentTape(Parcel([self._lines[: self.line]]), self._columns, self._ended)
        self.line = 0
        self._ended = []
        return sent


@dataclass(frozen=True)
class SentTape:
    """The lines of ended steps, on their way."""

    parcel: Parcel
    columns: Sequence[str]
    written: Sequence[frozenset[str]]

    def lines(self) -> list[dict[str, float | None]]:
        """Returns the arrived lines by column; None is "not measured", NaN was measured."""
        (lines,) = self.parcel.tensors()
        return [
            {
                column: value if column in written else None
                for column, value in zip(self.columns, line, strict=True)
            }
            for line, written in zip(lines.numpy().tolist(), self.written, strict=True)
        ]
