"""What a run recorded of a GEMM operand."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from numwatch.recommend.block_rows import Blocks
from numwatch.snapshot import SlotInfo
from numwatch.stats import TensorStats
from numwatch.stats.histograms import Doubles, Histograms, Ints, places_of

PLAIN = ("numel", "zeros", "pow2s", "amax", "amin", "sum", "sumsq")
"""Columns of `Rows` that are attributes of `TensorStats`."""


@dataclass(frozen=True, eq=False)
class Rows(Histograms):
    """An operand on n steps on which it was seen whole, without a non-finite element.

    Attributes:
        step: Int64 [n], rising.
        loss_scale: Float64 [n]; gradients are still multiplied by it, 1.0 elsewhere.
        numel: Int64 [n].
        zeros: Int64 [n].
        sum: Float64 [n].
        sumsq: Float64 [n].
        blocks: The block counts of each, empty where the step has none.
    """

    step: Ints
    loss_scale: Doubles
    numel: Ints
    zeros: Ints
    sum: Doubles
    sumsq: Doubles
    blocks: tuple[Blocks, ...]

    @classmethod
    def of(cls, *stats: TensorStats, blocks: Blocks | None = None) -> Rows:
        """Returns steps 0, 1, … on which a tensor looked like this, without a loss scale.

        Args:
            stats: What it looked like.
            blocks: Its block counts on each of them.
        """
        counts = [np.array(one.binades, np.int64) for one in stats]
        return cls(
            counts=np.concatenate([np.zeros(0, np.int64), *counts]),
            ends=np.cumsum([0, *map(len, counts)]),
            first=np.array([one.binade_first for one in stats], np.int64),
            step=np.arange(len(stats)),
            loss_scale=np.ones(len(stats)),
            blocks=(blocks or {},) * len(stats),
            **{name: np.array([getattr(one, name) for one in stats]) for name in PLAIN},
        )

    def where(self, chosen: npt.NDArray[np.bool_] | Ints) -> Rows:
        """Returns some of the rows, told by a flag for each or by their places."""
        places = np.arange(len(self))[chosen]
        flat, ends = places_of(self.ends[places], np.diff(self.ends)[places])
        apart = ("counts", "ends", "blocks")
        kept = [field.name for field in fields(self) if field.name not in apart]
        return Rows(
            counts=self.counts[flat],
            ends=ends,
            blocks=tuple(self.blocks[at] for at in places.tolist()),
            **{name: getattr(self, name)[places] for name in kept},
        )

    def stats(self, row: int) -> TensorStats:
        """Returns one of them as what the tensor looked like."""
        counts = self.counts[self.ends[row] : self.ends[row + 1]]
        return TensorStats(
            nans=0,
            posinfs=0,
            neginfs=0,
            binade_first=int(self.first[row]),
            binades=tuple(counts.tolist()),
            **{name: getattr(self, name)[row].item() for name in PLAIN},
        )


@dataclass(frozen=True, eq=False)
class History:
    """An operand over the run.

    Attributes:
        slot: `<module>:<role>`.
        info: What the manifest says of it.
        rows: Full rows without a non-finite element, thinned evenly.
        steps: Recorded steps without a non-finite element, int64 [n].
        amax: Their amaxes, unscaled, float64 [n]; 0 where all is zero.
        nonfinite: Recorded steps with one.
    """

    slot: str
    info: SlotInfo
    rows: Rows
    steps: Ints
    amax: Doubles
    nonfinite: int

    @property
    def drift(self) -> float:
        """Bits the amax moved from the first quarter of the run to the last, in the median."""
        seen = self.amax[self.amax > 0]
        quarter = len(seen) // 4
        if not quarter:
            return 0.0
        return float(np.log2(np.median(seen[-quarter:]) / np.median(seen[:quarter])))
