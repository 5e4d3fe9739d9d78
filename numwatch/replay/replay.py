"""`replay`: a run's recorded history under a recipe that the run did not use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from numwatch.formats import Format, get_format
from numwatch.plan import OPERAND_ROLES
from numwatch.recipes.loss_scalers import GradScalerRecipe, MegatronScaler, StaticLossScale
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling, StaticScaling
from numwatch.recipes.spec import AnyRecipe, recipe_text
from numwatch.record import Run, open_run
from numwatch.replay.columns import Doubles
from numwatch.replay.figures import SlotReplay
from numwatch.replay.history import History, SlotHistory
from numwatch.replay.loss import LossCourse, replay_loss
from numwatch.replay.parts import replay_parts
from numwatch.replay.tensors import replay_tensor
from numwatch.snapshot import GRADIENT_ROLES, role_of

HYBRID = {"input": "e4m3", "weight": "e4m3", "grad_output": "e5m2"}
"""Formats by role, Transformer Engine's default."""


@dataclass(frozen=True, eq=False)
class Replay:
    """What a recipe would have done.

    Attributes:
        recipe: The recipe, as text.
        slots: The worst first: by steps that saturate, then by what is flushed, then by headroom.
        steps: Steps of the run.
        recorded: Of these, steps of which amaxes were recorded.
        loss: What a loss scaler would have done at each step; None for other recipes.
        block_rows: Rows of which block by block counts were taken, for recipes that scale parts;
            None for others.
    """

    recipe: str
    slots: tuple[SlotReplay, ...]
    steps: int
    recorded: int
    loss: LossCourse | None = None
    block_rows: int | None = None

    @property
    def certain(self) -> bool:
        """Whether every scale in force is known."""
        return not self.doubtful and all(one.certain for one in self.slots)

    @property
    def history_seen(self) -> float | None:
        """Share of the amaxes in the histories that were recorded; None where none looks back."""
        reaches = [one.reach for one in self.slots if one.reach is not None]
        held = sum(reach.held for reach in reaches)
        return sum(reach.seen for reach in reaches) / held if held else None

    @property
    def loss_scale(self) -> Doubles | None:
        """The loss scale at each step, float64 [steps]; None for recipes of tensors."""
        return None if self.loss is None else self.loss.scale

    @property
    def skipped(self) -> int | None:
        """Steps a loss scaler would have skipped; None for recipes of tensors."""
        return None if self.loss is None else int(self.loss.skipped.sum())

    @property
    def doubtful(self) -> int:
        """Of all steps, those of which it is in doubt whether they would be skipped."""
        return 0 if self.loss is None else int(self.loss.doubtful.sum())


class Replayer:
    """Replays recipes over one run, which is read once for all in a row that ask the same slots."""

    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        *,
        formats: Mapping[str, str] | str | None = None,
        slots: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Reads nothing yet; the arguments are those of `replay`."""
        self._run = run if isinstance(run, Run) else open_run(run)
        self._formats, self._slots, self._progress = formats, slots, progress
        self._read: tuple[tuple[str, ...], History] | None = None

    def __call__(self, recipe: AnyRecipe) -> Replay:
        """Returns what the recipe would have done, see `replay`."""
        if isinstance(recipe, StaticLossScale | GradScalerRecipe | MegatronScaler):
            fmt = self._formats if isinstance(self._formats, str) else "fp16"
            history = self._history(GRADIENT_ROLES)
            found, course = replay_loss(history, recipe, get_format(fmt))
            return _joined(history, recipe, found, loss=course)
        history = self._history(OPERAND_ROLES)
        if isinstance(recipe, StaticScaling | CurrentScaling | DelayedScaling):
            found = [replay_tensor(one, recipe, self._format(one)) for one in history]
            return _joined(history, recipe, found)
        found, block_rows = replay_parts(self._run, history, recipe, self._format)
        return _joined(history, recipe, found, block_rows=block_rows)

    def _history(self, roles: tuple[str, ...]) -> History:
        if self._read is None or self._read[0] != roles:
            self._read = None  # one at a time: it may be a gigabyte
            self._read = roles, History(self._run, roles, self._slots, self._progress)
        return self._read[1]

    def _format(self, history: SlotHistory) -> Format:
        if isinstance(self._formats, str):
            return get_format(self._formats)
        return get_format({**HYBRID, **(self._formats or {})}[role_of(history.slot)])


def replay(
    run: Run | str | os.PathLike[str],
    recipe: AnyRecipe,
    *,
    formats: Mapping[str, str] | str | None = None,
    slots: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Replay:
    """Returns what a recipe would have done to each recorded tensor of a run.

    Operands of GEMMs are replayed under recipes for tensors and their parts, gradients under
    recipes for the loss scale. Gradients count without the loss scale that they were seen at. The
    recipe begins with the record, goes on from attempt to attempt, and heeds skipped steps like any
    other. The run stays what it was: what a skip or a rounding would have changed later on is not
    in its record.

    Where amaxes were not recorded at every step a delayed recipe rests on what was. An amax stays
    in the history for `history` runs of its module, seen or not; steps that were not recorded count
    as runs, recorded ones without the slot do not. Larger amaxes that nobody saw would lower the
    scale. Where all of a history was unseen, the last amax recorded stands for it. A slot's `reach`
    counts both; `certain` says whether anything rested on them. A loss scaler goes by the gradients
    of recorded steps and by what the run's own scaler found at all of them, and takes the last ones
    seen where neither decides.

    Args:
        run: The run, or where its record is.
        recipe: What to replay, see `numwatch.recipes.spec`.
        formats: The format by role, or one for all; E4M3 forward and E5M2 backward by default, FP16
            for a loss scale. Recipes of blocks bring theirs.
        slots: Names or globs of slots; None for all.
        progress: Called with the number of rows read with each piece.

    Raises:
        NumwatchError: A glob fits no slot, or a format is unknown.
        RecordError: No record is there.
    """
    return Replayer(run, formats=formats, slots=slots, progress=progress)(recipe)


def _joined(
    history: History,
    recipe: AnyRecipe,
    found: Sequence[SlotReplay],
    *,
    loss: LossCourse | None = None,
    block_rows: int | None = None,
) -> Replay:
    return Replay(
        recipe=recipe_text(recipe),
        slots=tuple(sorted(found, key=_badness, reverse=True)),
        steps=len(history.steps),
        recorded=int(history.recorded.sum()),
        loss=loss,
        block_rows=block_rows,
    )


def _badness(one: SlotReplay) -> tuple[float, float, float]:
    share = one.steps_saturating / max(one.steps_known, 1)
    return share, one.worst_flushed, float(np.nan_to_num(one.median_wasted))
