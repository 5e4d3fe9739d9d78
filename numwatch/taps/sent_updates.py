"""What was measured around an optimizer's step, on its way to the host."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.entries import Column
from numwatch.snapshot import UPDATE_ROLE
from numwatch.stats.moments import MOMENTS
from numwatch.stats.updates import FIGURES, shares_of_updates
from numwatch.taps.changes import Judged
from numwatch.taps.parcel import Parcel
from numwatch.taps.sent_rows import SentRows
from numwatch.taps.states import StateKind
from numwatch.tensor_rows import Rows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class JudgedStates:
    """The same tensor of the state of some parameters.

    Attributes:
        slots: Their slots, k of them.
        dtype: The state's, without `torch.`.
        sampled: Elements looked at of each.
        kind: What the optimizer does with it.
        figures: Of second moments FP64 [k, len(stats.moments.MOMENTS)], in pieces.
    """

    slots: Sequence[str]
    dtype: str
    sampled: int
    kind: StateKind
    figures: Sequence[Tensor]


class SentUpdates:
    """One optimizer's turn: its updates, its state, and the rows of both.

    Attributes:
        optimizer: Position of the optimizer; None of one that was not given.
        may_skip: Whether it was called with a flag that may have told it to do nothing.
        parcels: What has to arrive before anything here is read.
    """

    def __init__(
        self,
        optimizer: int | None,
        may_skip: bool,
        judged: Sequence[Judged],
        states: Sequence[JudgedStates],
        rows: SentRows,
    ) -> None:
        self.optimizer, self.may_skip = optimizer, may_skip
        self._judged, self._states, self._rows = judged, states, rows
        figures = [*(j.figures for j in judged), *(f for s in states for f in s.figures)]
        self._figures = Parcel(figures, owned=True)
        self.parcels = (self._figures, rows.parcel)

    def rows(self) -> Rows:
        """Returns the rows of updates and state."""
        return self._rows.rows()

    def updates(self) -> Iterator[Mapping[str, Column]]:
        """Yields columns of `step_entries.Update`: of parameters of one size under one format."""
        figures = self._figures.tensors()[: len(self._judged)]
        ratio: Column = ()
        applied_sq: Column = ()
        weight_sq: Column = ()
        names: Sequence[str] = ()
        for judged, table in zip(self._judged, figures, strict=True):
            sums = table.numpy()
            shares = shares_of_updates(sums)
            if judged.names is not names:
                # The first is the format the weights are in: it alone knows what arrived.
                names, ratio = judged.names, shares["ratio"]
                applied_sq = sums[:, FIGURES.index("applied_sq")].copy()
                weight_sq = sums[:, FIGURES.index("weight_sq")].copy()
            k = len(names)
            unknown = np.full(k, np.nan)
            yield {
                "slot": [f"{name}:{UPDATE_ROLE}" for name in names],
                "storage": [judged.storage] * k,
                "numel": list(judged.numels),
                "sampled": [judged.sampled] * k,
                "nonzero": shares["nonzero"],
                "ratio": ratio,
                "swallowed": shares["swallowed"],
                "stochastic_kept": shares["stochastic_kept"] if judged.directed else unknown,
                "deferred": shares["deferred"] if judged.lost_in is None else unknown,
                "edq": shares["edq"] if judged.directed else unknown,
                "edq_normalised": shares["edq_normalised"] if judged.directed else unknown,
                "lost": [judged.storage == judged.lost_in] * k,
                "intended": [judged.source] * k,
                "intended_sq": sums[:, FIGURES.index("delta_sq")].copy(),
                "applied_sq": applied_sq,
                "weight_sq": weight_sq,
            }

    def states(self) -> Iterator[Mapping[str, Column]]:
        """Yields columns of `step_entries.OptimizerState`: of the same state of some parameters."""
        figures = iter(self._figures.tensors()[len(self._judged) :])
        for one in self._states:
            k = len(one.slots)
            unknown = np.full(k, np.nan)
            below_eps = vanished = rms = unknown
            if one.figures:
                table = np.concatenate([next(figures).numpy() for _ in one.figures])
                found: dict[str, Floats] = dict(zip(MOMENTS, table.T, strict=True))
                below_eps = _share(found["below_eps"], found["touched"])
                vanished = _share(found["vanished"], found["with_gradient"])
                rms = _root(found["rms_squared"])
            yield {
                "slot": one.slots,
                "dtype": [one.dtype] * k,
                "sampled": [one.sampled] * k,
                "eps": [one.kind.eps] * k,
                "eps_stored": [_stored(one.kind.eps, one.dtype)] * k,
                "decay": [one.kind.decay] * k,
                "decay_stored": [_stored(one.kind.decay, one.dtype)] * k,
                "below_eps": below_eps,
                "vanished": vanished,
                "rms": rms,
            }


def _share(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return shares


def _root(square: Floats) -> Floats:
    roots: Floats = np.sqrt(np.where(np.isfinite(square), square, np.nan))
    return roots


@cache
def _stored(value: float | None, dtype: str) -> float | None:
    """Returns a hyperparameter as a tensor of that dtype would hold it."""
    return (
        None
        if value is None
        else float(torch.tensor(value, dtype=getattr(torch, dtype), device="cpu"))
    )
