"""`replay`: a run's recorded history under a recipe that the run did not use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numwatch.formats import Format, get_format
from numwatch.plan import OPERAND_ROLES
from numwatch.recipes.loss_scalers import loss_scales_over
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling, StaticScaling
from numwatch.recipes.spec import LOSS_RECIPES, AnyRecipe, LossRecipe, TensorRecipe, recipe_text
from numwatch.record import Run, open_run
from numwatch.replay.columns import Bools, Doubles, Ints
from numwatch.replay.figures import SlotReplay
from numwatch.replay.history import History, SlotHistory
from numwatch.replay.parts import replay_parts
from numwatch.replay.shares import shares_at_most
from numwatch.snapshot import GRADIENT_ROLES, role_of

HYBRID = {"input": "e4m3", "weight": "e4m3", "grad_output": "e5m2"}
"""Formats by role, Transformer Engine's default."""
_ROUNDING = 1 + 2.0**-22
"""Scales are FP32: an amax scaled by its own scale lands up to two roundings above the largest."""


@dataclass(frozen=True, eq=False)
class Replay:
    """What a recipe would have done.

    Attributes:
        recipe: The recipe, as text.
        slots: The worst first: by steps that saturate, then by what is flushed, then by headroom.
        steps: Steps of the run.
        recorded: Of these, steps of which amaxes were recorded.
        certain: Whether every scale in force is known.
        skipped: Steps a loss scaler would have skipped; None for other recipes.
        doubtful: Of all steps, those of which it is in doubt whether they would be skipped.
        loss_scale: The loss scale at each step, float64 [steps]; None for other recipes.
    """

    recipe: str
    slots: tuple[SlotReplay, ...]
    steps: int
    recorded: int
    certain: bool
    skipped: int | None = None
    doubtful: int = 0
    loss_scale: Doubles | None = None


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
    recipes for the loss scale. Gradients count without the loss scale that they were seen at.

    Where amaxes were not recorded at every step a delayed recipe rests on what was: an amax stays
    in the history for as many steps as it would, and between recorded steps the last one seen
    stands. A scaler takes the last one seen for the steps between. `certain` says whether anything
    rested on that.

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
    record = run if isinstance(run, Run) else open_run(run)
    if recipe.name in LOSS_RECIPES:
        history = History(record, GRADIENT_ROLES, slots, progress)
        return _replay_loss(history, recipe, formats if isinstance(formats, str) else "fp16")
    history = History(record, OPERAND_ROLES, slots, progress)
    if isinstance(recipe, StaticScaling | CurrentScaling | DelayedScaling):
        found = [_replay_slot(one, recipe, _format_of(one, formats)) for one in history]
    else:
        found = replay_parts(record, history, recipe, lambda one: _format_of(one, formats))
    return _joined(history, recipe, found)


def _replay_slot(history: SlotHistory, recipe: TensorRecipe, fmt: Format) -> SlotReplay:
    scale = recipe.over(history.cast_amax, fmt, history.run).astype(np.float64)
    unseen = len(history) and history.run[-1] + 1 > len(history)
    return cast_slot(
        history, fmt, scale, certain=not (unseen and isinstance(recipe, DelayedScaling))
    )


def cast_slot(history: SlotHistory, fmt: Format, scale: Doubles, *, certain: bool) -> SlotReplay:
    """Returns what casting a slot's tensors at given scales, one a step, would have done."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        peak = history.amax * scale
        saturates = (peak > fmt.max * _ROUNDING) | np.isinf(history.cast_amax)
        wasted = np.where(peak > 0, np.maximum(np.log2(fmt.max / peak), 0.0), np.nan)
    full = history.full
    flushed, saturated = (np.full((len(history), 3), np.nan) for _ in range(2))
    rows, own = history.rows, scale[full] / history.rows.loss_scale
    if len(rows):
        flushed[full] = shares_at_most(rows, fmt.flush_threshold, own)
        # As a cast counts them: what the rounding of the scale lifts above the largest is none.
        saturated[full] = 1.0 - shares_at_most(rows, fmt.max * _ROUNDING, own)[:, [0, 2, 1]]
    elements = np.zeros(len(history), np.int64)
    elements[full] = np.add.reduceat(rows.counts, rows.ends[:-1]) if len(rows.counts) else 0
    return SlotReplay(
        slot=history.slot,
        format=fmt.name,
        step=history.step,
        scale=scale,
        saturates=saturates,
        saturated=saturated,
        flushed=flushed,
        wasted=wasted,
        elements=elements,
        certain=certain,
    )


def _replay_loss(history: History, recipe: Any, fmt_name: str) -> Replay:
    fmt = get_format(fmt_name)
    slots = list(history)
    amaxes, broken = _largest_gradients(history.steps, slots)
    seen = np.isfinite(amaxes) | broken
    last = np.maximum.accumulate(np.where(seen, np.arange(len(seen)), -1))
    known = np.where(last >= 0, np.nan_to_num(amaxes[last]), np.nan)
    scales, skipped, doubtful = loss_scales_over(
        recipe,
        np.where(broken[last] & ~seen, 0.0, known),
        fmt,
        broken=broken,
        floors=np.where(seen, known, 0.0),
        ceilings=np.where(seen, known, np.inf),
    )
    found = []
    for one in slots:
        at = np.searchsorted(history.steps, one.step)
        found.append(cast_slot(one, fmt, scales[at], certain=bool(seen.all())))
    joined = _joined(history, recipe, found)
    return Replay(
        recipe=joined.recipe,
        slots=joined.slots,
        steps=joined.steps,
        recorded=joined.recorded,
        certain=not doubtful.any(),
        skipped=int(skipped.sum()),
        doubtful=int(doubtful.sum()),
        loss_scale=scales,
    )


def _largest_gradients(steps: Ints, slots: Sequence[SlotHistory]) -> tuple[Doubles, Bools]:
    """The largest unscaled gradient of each step, NaN where none was seen, and whether one is NaN.

    One that was infinite at the loss scale it was seen at counts by the finite ones beside it.
    """
    amaxes, broken = np.full(len(steps), np.nan), np.zeros(len(steps), np.bool_)
    for one in slots:
        at = np.searchsorted(steps, one.step)
        amaxes[at] = np.fmax(amaxes[at], one.amax)
        broken[at] |= np.isnan(one.cast_amax)
    return amaxes, broken


def _joined(
    history: History, recipe: AnyRecipe | LossRecipe, found: Sequence[SlotReplay]
) -> Replay:
    return Replay(
        recipe=recipe_text(recipe),
        slots=tuple(sorted(found, key=_badness, reverse=True)),
        steps=len(history.steps),
        recorded=int(history.recorded.sum()),
        certain=all(one.certain for one in found),
    )


def _badness(one: SlotReplay) -> tuple[float, float, float]:
    share = one.steps_saturating / max(one.steps_known, 1)
    return share, one.worst_flushed, np.nan_to_num(one.median_wasted)


def _format_of(history: SlotHistory, formats: Mapping[str, str] | str | None) -> Format:
    if isinstance(formats, str):
        return get_format(formats)
    return get_format({**HYBRID, **(formats or {})}[role_of(history.slot)])
