"""What was measured around an optimizer's step, on its way to the host."""

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch

from numwatch.snapshot import UPDATE_ROLE, OptimizerState, Rows, Update
from numwatch.stats.moments import MOMENTS
from numwatch.stats.updates import update_shares
from numwatch.taps.changes import Judged
from numwatch.taps.moments import JudgedMoments, StateSample
from numwatch.taps.parcel import Parcel
from numwatch.taps.sent_rows import SentRows


class SentUpdates:
    """One optimizer's turn: its updates, its state, and the rows of both.

    Attributes:
        optimizer: Position of the optimizer.
        may_skip: Whether it was called with a flag that may have told it to do nothing.
        parcels: What has to arrive before anything here is read.
    """

    def __init__(
        self,
        optimizer: int,
        may_skip: bool,
        judged: Sequence[Judged],
        moments: Sequence[JudgedMoments],
        states: Sequence[StateSample],
        rows: SentRows,
    ) -> None:
        self.optimizer, self.may_skip = optimizer, may_skip
        self._figures = Parcel([*(j.figures for j in judged), *(m.figures for m in moments)])
        self._rows = rows
        self.parcels = (self._figures, rows.parcel)
        # Names and sizes alone: the samples must not outlive the step.
        self._updates = [
            (
                one.storage,
                [(c.name, c.numel, c.before.numel(), c.lost_in, c.source) for c in one.changes],
                one.changes[0].directed,
            )
            for one in judged
        ]
        self._moments = [tuple(one.slots) for one in moments]
        self._states = [
            (one.slot, str(one.state.dtype).removeprefix("torch."), one.state.numel(), one.kind)
            for one in states
        ]

    def rows(self) -> Rows:
        """Returns the rows of updates and state."""
        return self._rows.rows()

    def updates(self) -> Iterator[Update]:
        """Yields each parameter's update under each storage format."""
        figures = self._figures.tensors()[: len(self._updates)]
        ratios: dict[str, float | None] = {}
        for (storage, changes, directed), table in zip(self._updates, figures, strict=True):
            for (name, numel, sampled, lost_in, source), row in zip(
                changes, table.tolist(), strict=True
            ):
                shares = update_shares(row)
                # The first is the format the weights are in: it alone knows what arrived.
                ratio = ratios.setdefault(name, shares["ratio"])
                yield Update(
                    slot=f"{name}:{UPDATE_ROLE}",
                    storage=storage,
                    numel=numel,
                    sampled=sampled,
                    nonzero=shares["nonzero"],
                    ratio=ratio,
                    swallowed=shares["swallowed"],
                    stochastic_kept=shares["stochastic_kept"] if directed else None,
                    deferred=shares["deferred"] if lost_in is None else None,
                    edq=shares["edq"] if directed else None,
                    edq_normalised=shares["edq_normalised"] if directed else None,
                    lost=storage == lost_in,
                    intended=source,
                )

    def states(self) -> Iterator[OptimizerState]:
        """Yields what is known of each tensor of the state."""
        figures = self._figures.tensors()[len(self._updates) :]
        moments = {
            slot: dict(zip(MOMENTS, row, strict=True))
            for slots, table in zip(self._moments, figures, strict=True)
            for slot, row in zip(slots, table.tolist(), strict=True)
        }
        for slot, dtype, sampled, kind in self._states:
            found = moments.get(slot)
            yield OptimizerState(
                slot=slot,
                dtype=dtype,
                sampled=sampled,
                eps=kind.eps,
                eps_stored=_stored(kind.eps, dtype),
                decay=kind.decay,
                decay_stored=_stored(kind.decay, dtype),
                below_eps=_share(found["below_eps"], found["touched"]) if found else None,
                vanished=_share(found["vanished"], found["with_gradient"]) if found else None,
                rms=_root(found["rms_squared"]) if found else None,
            )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None


@cache
def _stored(value: float | None, dtype: str) -> float | None:
    """Returns a hyperparameter as a tensor of that dtype would hold it."""
    return None if value is None else float(torch.tensor(value, dtype=getattr(torch, dtype)))
