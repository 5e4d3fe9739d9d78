"""What a run recorded of each tensor that a recipe scales: its amaxes and histograms by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from numwatch.errors import NumwatchError, near
from numwatch.record import Run
from numwatch.replay.columns import INF, NAN, Bools, Doubles, Ints, read_columns
from numwatch.snapshot import SlotInfo, path_of, role_of
from numwatch.stats.histograms import Histograms, places_of

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FullRows(Histograms):
    """Histograms of n rows of one slot, as they were seen.

    Attributes:
        loss_scale: Float64 [n], what they are multiplied by.
        zeros: Int64 [n].
    """

    loss_scale: Doubles
    zeros: Ints


@dataclass(frozen=True, eq=False)
class SlotHistory:
    """The rows of one slot, by rising step.

    Attributes:
        slot: Its name.
        info: What the manifest says of it; None where that was lost.
        step: Int64 [n].
        run: Int64 [n], how many times its module had run before, as far as is known: steps that
            were not recorded count as runs, recorded ones without a row of it do not.
        amax: Float64 [n], the largest finite magnitude, without the loss scale.
        cast_amax: FP32 [n], what a cast sees: inf where there are infinities, NaN where there are
            NaNs alone, `amax` elsewhere.
        loss_scale: Float64 [n], what the row's numbers were multiplied by.
        merged: Whether rows hold several calls' tensors, as those of accumulated micro-batches do.
        full: Bool [n], whether the row has a histogram.
        rows: Those histograms.
    """

    slot: str
    info: SlotInfo | None
    step: Ints
    run: Ints
    amax: Doubles
    cast_amax: Singles
    loss_scale: Doubles
    merged: bool
    full: Bools
    rows: FullRows

    def __len__(self) -> int:
        return len(self.step)


class History:
    """The rows of all slots in some roles; iterates over the slots in the order of the manifest.

    Rows at a loss scale of 0, inf or NaN tell nothing and are left out. So are those of a weight on
    recorded steps without a row of its module's input: the module did not run.

    Attributes:
        run: The run.
        slots: Names of the slots.
        steps: Int64, every step of the run.
        recorded: Bool, which of them were recorded.
    """

    def __init__(
        self,
        run: Run,
        roles: Sequence[str],
        slots: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Reads the rows.

        Args:
            run: The run.
            roles: The roles wanted.
            slots: Names or globs of slots (`blocks.*:input`); None for all.
            progress: Called with the number of rows read with each piece.

        Raises:
            NumwatchError: A name or glob fits no slot in these roles.
        """
        self.run = run
        _check(run, roles, slots)
        columns = self._columns = read_columns(run, roles, progress)
        seen = np.unique(columns.step)
        self.steps: Ints = np.union1d(run.steps()["step"].to_numpy(), seen)
        self.recorded: Bools = np.isin(self.steps, seen)
        self._kinds = {
            full: np.isin(self.steps, columns.step[columns.full == full]) for full in (True, False)
        }
        self._order = np.lexsort((columns.step, columns.place))
        places = columns.place[self._order]
        self._starts = np.searchsorted(places, np.arange(len(columns.places) + 1))
        known = {slot: i for i, slot in enumerate(run.slots)}
        self.slots = sorted(
            (slot for slot in columns.places if self._wanted(slot, slots)),
            key=lambda slot: known.get(slot, len(known)),
        )

    def __iter__(self) -> Iterator[SlotHistory]:
        for slot in self.slots:
            yield self.slot(slot)

    def slot(self, name: str) -> SlotHistory:
        """Returns the rows of one slot."""
        columns, own = self._columns, self._own(name)
        source = f"{path_of(name)}:input"
        if role_of(name) == "weight" and source in columns.places:
            own = own[np.isin(columns.step[own], columns.step[self._own(source)])]
        runs = self._runs(columns.step[own], columns.full[own])
        loss_scale = columns.loss_scale[own]
        usable = (loss_scale > 0) & np.isfinite(loss_scale)
        own = own[usable]
        with np.errstate(over="ignore"):
            amax = columns.amax[own] / loss_scale[usable]
            cast = amax.astype(np.float32)
        cast[columns.kind[own] == NAN] = np.nan
        cast[columns.kind[own] == INF] = np.inf
        full = columns.full[own]
        return SlotHistory(
            slot=name,
            info=self.run.slots.get(name),
            step=columns.step[own],
            run=runs[usable],
            amax=amax,
            cast_amax=cast,
            loss_scale=loss_scale[usable],
            merged=bool(columns.merged[own].any()),
            full=full,
            rows=self._full_rows(own[full]),
        )

    def _own(self, name: str) -> Ints:
        place = self._columns.places[name]
        own: Ints = self._order[self._starts[place] : self._starts[place + 1]]
        return own

    def _runs(self, step: Ints, full: Bools) -> Ints:
        """How often a slot's module ran before each of its rows."""
        idle = np.zeros(len(self.steps), np.bool_)
        for kind, steps in self._kinds.items():
            # Where it never has a row of this kind, the lack of one tells nothing.
            if (full == kind).any():
                idle |= steps
        at = np.searchsorted(self.steps, step)
        idle[at] = False
        runs: Ints = at - np.cumsum(idle)[at]
        return runs

    def _full_rows(self, own: Ints) -> FullRows:
        columns = self._columns
        at = columns.at[own]
        flat, ends = places_of(columns.begin[at], columns.length[at])
        return FullRows(
            counts=columns.counts[flat].astype(np.int64),
            ends=ends,
            first=columns.first[at],
            pow2s=columns.pow2s[at],
            amin=columns.amin[at],
            amax=columns.amax[own],
            loss_scale=columns.loss_scale[own],
            zeros=columns.zeros[at],
        )

    def _wanted(self, slot: str, globs: Sequence[str] | None) -> bool:
        info = self.run.slots.get(slot)
        owner = "" if info is None else info.module_class
        # Embeddings and norms, which someone chose to watch, have no operands.
        if owner.startswith("Embedding") or owner.endswith("Norm"):
            return False
        return globs is None or any(fnmatchcase(slot, glob) for glob in globs)


def _check(run: Run, roles: Sequence[str], globs: Sequence[str] | None) -> None:
    names = [slot for slot in run.slots if role_of(slot) in roles]
    for glob in globs or ():
        if names and not any(fnmatchcase(slot, glob) for slot in names):
            raise NumwatchError(
                f"no slot {glob!r} in the roles {', '.join(roles)}{near(glob, names)}"
            )
