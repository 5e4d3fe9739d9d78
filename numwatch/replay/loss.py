"""A replay under loss scalers: which scale each step would have had, and which would be skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from numwatch.formats import Format
from numwatch.recipes.loss_scalers import loss_scales_over, overflow_limit
from numwatch.recipes.spec import LossRecipe
from numwatch.record import Run
from numwatch.record.gradients import in_fp16
from numwatch.replay.columns import Bools, Doubles, Ints
from numwatch.replay.figures import SlotReplay
from numwatch.replay.history import History, SlotHistory
from numwatch.replay.tensors import cast_slot

_SLACK = 2.0**-50
"""Of a quotient by the scale: times the scale it is to lie on its side of the limit again."""


@dataclass(frozen=True, eq=False)
class LossCourse:
    """What a loss scaler would have done at each step of the run.

    Attributes:
        step: Int64 [steps].
        scale: The loss scale in force, float64 [steps].
        skipped: Bool [steps], where a gradient overflows or none would be finite at any scale.
        doubtful: Bool [steps], where that could be otherwise: nobody saw the step's gradients, and
            what the run's own scaler did does not decide it.
    """

    step: Ints
    scale: Doubles
    skipped: Bools
    doubtful: Bools


@dataclass(frozen=True, eq=False)
class _Gradients:
    """The largest unscaled gradient of each step, as best estimate, floor and ceiling."""

    value: Doubles
    floor: Doubles
    ceiling: Doubles
    broken: Bools


def replay_loss(
    history: History, recipe: LossRecipe, fmt: Format
) -> tuple[list[SlotReplay], LossCourse]:
    """Returns what a scaler would have made of each gradient slot and of each step.

    Args:
        history: The gradient slots.
        recipe: The scaler.
        fmt: The format of the scaled gradients.
    """
    slots, limit = list(history), overflow_limit(fmt)
    found = _gradients(history, slots, limit)
    scale, skipped, doubtful = loss_scales_over(
        recipe,
        found.value,
        fmt,
        broken=found.broken,
        floors=found.floor,
        ceilings=found.ceiling,
    )
    # Below the limit all round to a finite value.
    least = float(np.nextafter(limit, 0.0))
    replays = [
        cast_slot(
            one,
            fmt,
            scale[np.searchsorted(history.steps, one.step)],
            least,
            rounded=fmt.name == "fp16" and in_fp16(one.info),
        )
        for one in slots
    ]
    return replays, LossCourse(history.steps, scale, skipped, doubtful)


def _gradients(history: History, slots: Sequence[SlotHistory], limit: float) -> _Gradients:
    """What is known of each step's largest gradient.

    From its rows where it was recorded. The run's own scaler tells of every step: gradients that
    overflowed at its scale were at least the limit by it, those that did not were below. Where
    neither decides, the last step seen stands.
    """
    steps = history.steps
    seen, infinite = np.full(len(steps), np.nan), np.zeros(len(steps), np.bool_)
    for one in slots:
        at = np.searchsorted(steps, one.step)
        seen[at] = np.fmax(seen[at], one.amax)
        infinite[at] |= ~np.isfinite(one.cast_amax)
    # Where gradients are wider than FP16 one that is not finite is so at any loss scale.
    fp16 = any(in_fp16(one.info) for one in slots)
    ran = _Scaler(history.run, steps, limit)
    overflowed = infinite | ran.found_inf
    told = ~np.isnan(seen) & ~overflowed
    low = np.where(overflowed & ran.known & fp16, ran.edge * (1 + _SLACK), 0.0)
    high = np.where(ran.known & ~overflowed & fp16, ran.edge * (1 - _SLACK), np.inf)
    # The last one seen, and before the first one that.
    last = np.maximum.accumulate(np.where(told, np.arange(len(steps)), -1))
    carried = np.where(last >= 0, seen[last], seen[told][0] if told.any() else np.nan)
    return _Gradients(
        value=np.where(told, seen, np.clip(carried, low, high)),
        floor=np.fmax(seen, low),
        ceiling=np.where(told, seen, high),
        broken=ran.broken | (overflowed & ~(ran.known & fp16)),
    )


class _Scaler:
    """What the run's own scaler did, step by step.

    Attributes:
        known: Bool, whether its scale is a number to reckon with.
        edge: The unscaled magnitude that overflows at its scale; NaN where that is not known.
        found_inf: Bool, whether it found a gradient that was not finite.
        broken: Bool, whether the loss was not finite, which no loss scale mends.
    """

    def __init__(self, run: Run, steps: Ints, limit: float) -> None:
        table = run.steps()
        at = np.searchsorted(steps, table["step"].to_numpy())
        scale, loss = np.full(len(steps), np.nan), np.zeros(len(steps))
        self.found_inf: Bools = np.zeros(len(steps), np.bool_)
        scale[at] = table["loss_scale_before"].to_numpy()
        self.found_inf[at] = table["found_inf"].to_numpy(zero_copy_only=False)
        loss[at] = pc.fill_null(table["loss"], 0.0).to_numpy()
        self.known: Bools = np.isfinite(scale) & (scale > 0)
        self.broken: Bools = ~np.isfinite(loss)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            self.edge: Doubles = np.where(self.known, limit / scale, np.nan)
