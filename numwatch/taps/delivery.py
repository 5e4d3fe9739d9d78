"""Ended steps on their way to the host, and the snapshots they become there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from numwatch.entries import join_entries
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.step_entries import OptimizerState, Update
from numwatch.taps.comparison import SentComparison
from numwatch.taps.culprits import SentCulprits
from numwatch.taps.operands import SentBlocks
from numwatch.taps.operations import SentOperations
from numwatch.taps.parcel import Parcel
from numwatch.taps.sent_rows import SentRows
from numwatch.taps.sent_updates import SentUpdates
from numwatch.taps.tape import SentTape, found_inf_column, is_turn
from numwatch.tensor_rows import join_rows


@dataclass(frozen=True)
class EndedStep:
    """What the host knows of a step by itself.

    Attributes:
        announced: How often each optimizer's turn came, where somebody told.
        stepped: How often each optimizer was called.
        moved: Whether any was ever seen to be called; a compiled step, for one, tells nobody.
        scaled: Whether a scaler was in force.
        left_out: Whether it has left out optimizers that were not given.
    """

    step: int
    epoch: int
    batch: int
    announced: Sequence[int]
    stepped: Sequence[int]
    moved: bool
    scaled: bool
    left_out: bool
    step_seconds: float
    numwatch_seconds: float


@dataclass(frozen=True)
class Seen:
    """What was seen in the last of some ended steps, when that was recorded."""

    rows: SentRows
    updates: Sequence[SentUpdates]
    comparison: SentComparison
    reduced: Sequence[SentRows] = ()
    operations: SentOperations | None = None
    blocks: SentBlocks | None = None


@dataclass(frozen=True)
class Delivery:
    """Ended steps; `seen` belongs to the last of them."""

    steps: Sequence[EndedStep]
    tape: SentTape
    culprits: SentCulprits
    seen: Seen | None

    def arrived(self) -> bool:
        """Whether `snapshots` can be called; asks the device, never waits for it."""
        return all(parcel.arrived() for parcel in self._parcels())

    def wait(self) -> None:
        """Waits for the arrival: at the end of an epoch or a fit only."""
        for parcel in self._parcels():
            parcel.wait()

    def snapshots(self) -> list[Snapshot]:
        """Returns the steps as they were, in order."""
        lines, culprits = self.tape.lines(), self.culprits.found()
        snapshots = []
        for i, (ended, line) in enumerate(zip(self.steps, lines, strict=True)):
            found = {who: names for (at, who), names in culprits.items() if at == i}
            snapshots.append(Snapshot(ended.step, _scalars(ended, line, found)))
        if self.seen is not None:
            snapshots[-1] = _with_rows(snapshots[-1], self.seen, _loss_scales(lines[-1]))
        return snapshots

    def _parcels(self) -> list[Parcel]:
        parcels = [self.tape.parcel, self.culprits.parcel]
        if self.seen is not None:
            parcels += [self.seen.rows.parcel, self.seen.comparison.parcel]
            parcels += [parcel for update in self.seen.updates for parcel in update.parcels]
            parcels += [sent.parcel for sent in self.seen.reduced]
            if self.seen.operations is not None:
                parcels.append(self.seen.operations.parcel)
            if self.seen.blocks is not None:
                parcels.append(self.seen.blocks.parcel)
        return parcels


def _scalars(
    ended: EndedStep,
    line: Mapping[str, float | None],
    culprits: Mapping[int, tuple[str, ...]],
) -> StepScalars:
    norm_squared = line["grad_norm_squared"]
    scales = _loss_scales(line)
    skipped = tuple(i for i in range(len(ended.stepped)) if _skipped(i, ended, line, culprits))
    flags = [line[found_inf_column(i)] for i in range(len(ended.stepped))]
    known = any(flag is not None for flag in flags)
    blamed = [name for i in skipped for name in culprits.get(i, ())]
    return StepScalars(
        epoch=ended.epoch,
        batch=ended.batch,
        loss=line["loss"],
        lr=line["lr"],
        grad_norm=None if norm_squared is None else math.sqrt(norm_squared),
        loss_scale_before=scales[0],
        loss_scale_after=scales[-1],
        found_inf=any(flags) if known else ended.scaled and (bool(skipped) or ended.left_out),
        skipped=bool(skipped) or ended.left_out,
        skipped_optimizers=skipped,
        loss_scales=tuple(scales[:-1]) if ended.scaled and sum(ended.announced) > 1 else (),
        nonfinite_parameters=(
            tuple(dict.fromkeys(blamed)) if any(i in culprits for i in skipped) else None
        ),
        step_seconds=ended.step_seconds,
        numwatch_seconds=ended.numwatch_seconds,
    )


def _loss_scales(line: Mapping[str, float | None]) -> list[float]:
    """Returns the scale at each turn that came, and after the step; 1.0 without any."""
    turns = [value for name, value in line.items() if is_turn(name)]
    scales = [scale for scale in (*turns, line["loss_scale_after"]) if scale is not None]
    return scales if len(scales) > 1 else [*scales, *scales] or [1.0, 1.0]


def _skipped(
    i: int,
    ended: EndedStep,
    line: Mapping[str, float | None],
    culprits: Mapping[int, tuple[str, ...]],
) -> bool:
    """Whether an optimizer left the weights alone when its turn came, for all that is known."""
    if not (ended.scaled or ended.moved):
        return False
    # A fused optimizer's hooks fire on skipped steps too; then the flag alone tells.
    flagged = bool(line[found_inf_column(i)])
    if any(ended.announced):
        # Without a scaler nobody skips, but LBFGS has its closure called several times a step.
        expected = ended.announced[i] if ended.scaled else min(ended.announced[i], 1)
        return flagged or ended.stepped[i] < expected
    if ended.stepped[i]:
        return flagged
    # Nobody told whose turn it was: of several that did not step, those with a reason for it.
    return bool(culprits.get(i)) or not any(ended.stepped)


def _with_rows(snapshot: Snapshot, seen: Seen, loss_scales: Sequence[float]) -> Snapshot:
    # A fused optimizer that was told to leave the weights alone has made no update.
    skipped = snapshot.scalars.skipped_optimizers
    taken = [sent for sent in seen.updates if not (sent.may_skip and sent.optimizer in skipped)]
    measured = [sent.rows(loss_scales) for sent in (seen.rows, *seen.reduced)]
    return replace(
        snapshot,
        rows=join_rows([*measured, *(sent.rows() for sent in taken)]),
        updates=join_entries(Update, [columns for sent in taken for columns in sent.updates()]),
        states=join_entries(OptimizerState, [some for sent in taken for some in sent.states()]),
        shadows=seen.comparison.shadows(seen.rows.names),
        operations=() if seen.operations is None else seen.operations.arrived(),
        blocks=None if seen.blocks is None else seen.blocks.rows(loss_scales),
    )
