"""What a run recorded of each GEMM operand, thinned so that any run fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.plan import OPERAND_ROLES
from numwatch.recommend.block_rows import Blocks, read_blocks
from numwatch.recommend.thresholds import ROWS
from numwatch.record import Run
from numwatch.record.ahead import read_ahead
from numwatch.record.unpack import row_stats
from numwatch.snapshot import SlotInfo
from numwatch.stats import TensorStats

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """An operand on one step on which it was seen whole.

    Attributes:
        step: The step.
        stats: What it looked like; gradients still multiplied by the loss scale.
        loss_scale: That scale; 1.0 elsewhere.
        blocks: Its block counts, empty where the step has none.
    """

    step: int
    stats: TensorStats
    loss_scale: float = 1.0
    blocks: Blocks = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class History:
    """An operand over the run.

    Attributes:
        slot: `<module>:<role>`.
        info: What the manifest says of it.
        rows: Full rows without a non-finite element, thinned evenly, by rising step.
        steps: Recorded steps without a non-finite element, int64 [n].
        amax: Their amaxes, unscaled, float64 [n]; 0 where all is zero.
        nonfinite: Recorded steps with one.
    """

    slot: str
    info: SlotInfo
    rows: tuple[Row, ...]
    steps: npt.NDArray[np.int64]
    amax: Floats
    nonfinite: int

    @property
    def drift(self) -> float:
        """Bits the amax moved from the first quarter of the run to the last, in the median."""
        seen = self.amax[self.amax > 0]
        quarter = len(seen) // 4
        if not quarter:
            return 0.0
        return float(np.log2(np.median(seen[-quarter:]) / np.median(seen[:quarter])))


def read_histories(run: Run, progress: Callable[[int], None] | None = None) -> dict[str, History]:
    """Returns the history of every operand of every GEMM, by slot, in the order of the manifest.

    Args:
        run: The run.
        progress: Called with the number of rows read with each piece.
    """
    blocks = read_blocks(run)
    kept = {
        name: _Operand(info, {step for slot, step in blocks if slot == name})
        for name, info in run.slots.items()
        if info.role in OPERAND_ROLES
    }
    for table in read_ahead(run.tensor_batches()):
        _add(table, kept)
        if progress is not None:
            progress(table.num_rows)
    return {name: operand.history(blocks) for name, operand in kept.items()}


def _add(table: pa.Table, kept: Mapping[str, _Operand]) -> None:
    slots = pc.dictionary_encode(table["slot"].combine_chunks())
    operands = [kept.get(name) for name in slots.dictionary.to_pylist()]
    index = slots.indices.to_numpy()
    steps, full = table["step"].to_numpy(), table["binades"].is_valid().to_numpy()
    infinite = sum(table[name].to_numpy() for name in ("nans", "posinfs", "neginfs")) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        amax = table["amax"].to_numpy() / table["loss_scale"].to_numpy()
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(len(operands) + 1))
    chosen: list[int] = []
    for place, operand in enumerate(operands):
        if operand is not None:
            own = order[ends[place] : ends[place + 1]]
            sound = own[~infinite[own] & np.isfinite(amax[own])]
            operand.add(steps[sound], amax[sound], len(own) - len(sound))
            chosen += [at for at in sound[full[sound]].tolist() if operand.due(int(steps[at]))]
    for row in table.take(pa.array(chosen, pa.int64())).to_pylist():
        kept[row["slot"]].keep(row)


class _Operand:
    """What is gathered of one operand."""

    def __init__(self, info: SlotInfo, block_steps: set[int]) -> None:
        self._info, self._block_steps = info, block_steps
        self._plain, self._with_blocks = _Thinned(), _Thinned()
        self._steps: list[npt.NDArray[np.int64]] = []
        self._amax: list[Floats] = []
        self._nonfinite = 0

    def add(self, steps: npt.NDArray[np.int64], amax: Floats, nonfinite: int) -> None:
        self._steps.append(steps)
        self._amax.append(amax)
        self._nonfinite += nonfinite

    def due(self, step: int) -> bool:
        return self._of(step).due()

    def keep(self, row: dict[str, Any]) -> None:
        self._of(row["step"]).keep(row)

    def history(self, blocks: Mapping[tuple[str, int], Blocks]) -> History:
        rows = sorted(
            self._plain.kept + self._with_blocks.kept, key=lambda row: (row["attempt"], row["step"])
        )
        return History(
            self._info.slot,
            self._info,
            tuple(
                Row(
                    row["step"],
                    row_stats(row),
                    row["loss_scale"],
                    blocks.get((self._info.slot, row["step"]), {}),
                )
                for row in rows
            ),
            np.concatenate([np.zeros(0, np.int64), *self._steps]),
            np.concatenate([np.zeros(0), *self._amax]),
            self._nonfinite,
        )

    def _of(self, step: int) -> _Thinned:
        return self._with_blocks if step in self._block_steps else self._plain


class _Thinned:
    """Keeps every n-th row, n doubling whenever there are twice as many as wanted."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self._every = 1
        self._seen = 0

    def due(self) -> bool:
        self._seen += 1
        return (self._seen - 1) % self._every == 0

    def keep(self, row: dict[str, Any]) -> None:
        self.kept.append(row)
        if len(self.kept) >= 2 * ROWS:
            self.kept = self.kept[::2]
            self._every *= 2
