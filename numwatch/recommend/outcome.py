"""What a choice would have done to an operand over a whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from numwatch.formats import BlockFormat, Format
from numwatch.plan import Prediction
from numwatch.recipes.blockwise import RowScaling
from numwatch.recipes.scaling import StaticScaling
from numwatch.recipes.spec import Recipe
from numwatch.recommend.history import History, Row
from numwatch.recommend.predict import DIRECTIONS, Shares, predicted_errors, predicted_shares
from numwatch.recommend.thresholds import ERROR_ROWS, PERCENTILE
from numwatch.record.gradients import in_fp16
from numwatch.stats import Bounded


@dataclass(frozen=True)
class Outcome:
    """A format and a recipe, judged by an operand's history.

    Attributes:
        format: The format.
        recipe: The recipe.
        predicted: Shares over all elements of all judged rows; errors in the median of some.
        flushed: Share flushed at `PERCENTILE` of the steps, in the direction that flushes more.
        saturated: Share saturated there.
        worst: The largest share flushed on one step.
        worst_step: Which step that was.
        steps: How many steps were judged.
    """

    format: Format | BlockFormat
    recipe: Recipe
    predicted: Prediction
    flushed: float
    saturated: float
    worst: float
    worst_step: int
    steps: int


def outcome_of(history: History, fmt: Format | BlockFormat, recipe: Recipe) -> Outcome | None:
    """Returns what a choice would have done; None where no row tells.

    An operand of parts is rounded twice, along the last dimension for its first GEMM and across it
    for the other: the pooled shares are of the first, the percentiles of the worse.
    """
    in_parts = isinstance(fmt, BlockFormat) or isinstance(recipe, RowScaling)
    rows = [row for row in history.rows if row.stats.nonzeros]
    if in_parts and any(row.blocks for row in rows):
        rows = [row for row in rows if row.blocks]
    if not rows:
        return None
    lengths = _lengths(history)
    # Without block counts nothing but the length of a row tells one direction from the other.
    counted = any(row.blocks for row in rows)
    alike = isinstance(fmt, BlockFormat) or lengths["last"] == lengths["across"]
    directions = DIRECTIONS if in_parts and (counted or not alike) else DIRECTIONS[:1]
    shares = [
        [_shares(row, fmt, recipe, each, lengths[each]) for row in rows] for each in directions
    ]
    worse = [max(step, key=lambda one: one.flushed.value) for step in zip(*shares, strict=True)]
    worst = max(range(len(rows)), key=lambda at: worse[at].flushed.value)
    some = [
        rows[at] for at in np.linspace(0, len(rows) - 1, min(ERROR_ROWS, len(rows))).astype(int)
    ]
    errors = [predicted_errors(row.stats, fmt, recipe, blocks=row.blocks) for row in some]
    weights = [row.stats.nonzeros for row in rows]
    return Outcome(
        format=fmt,
        recipe=recipe,
        predicted=Prediction(
            flushed=_with_lost(_pooled([one.flushed for one in shares[0]], weights), history),
            saturated=_pooled([one.saturated for one in shares[0]], weights),
            median_relative_error=median(one.median_relative for one in errors),
            sqnr=median(one.sqnr for one in errors),
        ),
        flushed=_percentile([one.flushed.value for one in worse]),
        saturated=_percentile([one.saturated.value for one in worse]),
        worst=worse[worst].flushed.value,
        worst_step=rows[worst].step,
        steps=len(rows),
    )


def _shares(
    row: Row, fmt: Format | BlockFormat, recipe: Recipe, direction: str, length: int | None
) -> Shares:
    # Seen at a loss scale, and to be trained without one.
    scale = recipe.scale / row.loss_scale if isinstance(recipe, StaticScaling) else None
    return predicted_shares(
        row.stats, fmt, recipe, blocks=row.blocks, direction=direction, scale=scale, length=length
    )


def _lengths(history: History) -> dict[str, int | None]:
    """Elements in a row along the last dimension and across it; None where the shape is lost."""
    shape = history.info.shape
    if not shape:
        return dict.fromkeys(DIRECTIONS)
    return {"last": shape[-1], "across": math.prod(shape[:-1])}


def _with_lost(share: Bounded, history: History) -> Bounded:
    """A share of what was seen; of a gradient that FP16 had rounded before, nobody knows more."""
    if not (history.info.scaled and in_fp16(history.info)):
        return share
    return Bounded(share.value, share.low, 1.0)


def _pooled(shares: Sequence[Bounded], weights: Sequence[int]) -> Bounded:
    """The share over all elements of several tensors."""
    total = sum(weights)

    def over_all(name: str) -> float:
        parts = (getattr(one, name) * n for one, n in zip(shares, weights, strict=True))
        return float(sum(parts)) / total

    low, high = over_all("low"), over_all("high")
    return Bounded.within(over_all("value"), low, max(low, high))


def _percentile(values: Sequence[float]) -> float:
    return float(np.quantile(values, PERCENTILE, method="higher"))
