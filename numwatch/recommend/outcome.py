"""What a choice would have done to an operand over a whole run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from numwatch.formats import BlockFormat, Format
from numwatch.plan import Prediction
from numwatch.recipes.blockwise import RowScaling
from numwatch.recipes.spec import Recipe
from numwatch.recommend.history import History, Rows
from numwatch.recommend.predict import DIRECTIONS, predicted_errors
from numwatch.recommend.shares import shares_of_rows
from numwatch.recommend.thresholds import ERROR_ROWS, PERCENTILE
from numwatch.record.gradients import in_fp16
from numwatch.stats import Bounded
from numwatch.stats.histograms import Doubles, Ints


@dataclass(frozen=True, eq=False)
class Outcome:
    """A format and a recipe, judged by an operand's history.

    Attributes:
        format: The format.
        recipe: The recipe.
        rows: The judged rows.
        pooled_flushed: Share flushed over all elements of all judged rows.
        pooled_saturated: Share saturated, likewise.
        flushed: Share flushed at `PERCENTILE` of the steps, in the direction that flushes more.
        saturated: Share saturated there.
        worst: The largest share flushed on one step.
        worst_step: Which step that was.
    """

    format: Format | BlockFormat
    recipe: Recipe
    rows: Rows
    pooled_flushed: Bounded
    pooled_saturated: Bounded
    flushed: float
    saturated: float
    worst: float
    worst_step: int

    @property
    def steps(self) -> int:
        """How many steps were judged."""
        return len(self.rows)

    @cached_property
    def predicted(self) -> Prediction:
        """Both pooled shares, and the errors in the median of some rows: each takes a while."""
        places = np.linspace(0, len(self.rows) - 1, min(ERROR_ROWS, len(self.rows))).astype(int)
        errors = [
            predicted_errors(
                self.rows.stats(at), self.format, self.recipe, blocks=self.rows.blocks[at]
            )
            for at in places.tolist()
        ]
        return Prediction(
            flushed=self.pooled_flushed,
            saturated=self.pooled_saturated,
            median_relative_error=median(one.median_relative for one in errors),
            sqnr=median(one.sqnr for one in errors),
        )


def outcome_of(history: History, fmt: Format | BlockFormat, recipe: Recipe) -> Outcome | None:
    """Returns what a choice would have done; None where no row tells.

    An operand of parts is rounded twice, along the last dimension for its first GEMM and across it
    for the other: the pooled shares are of the first, the percentiles of the worse.
    """
    in_parts = isinstance(fmt, BlockFormat) or isinstance(recipe, RowScaling)
    rows = history.rows.where(history.rows.elements > 0)
    counted = np.array([bool(blocks) for blocks in rows.blocks], np.bool_)
    if in_parts and counted.any():
        rows = rows.where(counted)
    if not len(rows):
        return None
    lengths = _lengths(history)
    # Without block counts nothing but the length of a row tells one direction from the other.
    alike = isinstance(fmt, BlockFormat) or lengths["last"] == lengths["across"]
    directions = DIRECTIONS if in_parts and (counted.any() or not alike) else DIRECTIONS[:1]
    shares = [shares_of_rows(rows, fmt, recipe, each, lengths[each]) for each in directions]
    flushed, saturated = _worse(shares)
    worst = int(flushed.argmax())
    elements = rows.elements
    return Outcome(
        format=fmt,
        recipe=recipe,
        rows=rows,
        pooled_flushed=_with_lost(_pooled(shares[0][0], elements), history),
        pooled_saturated=_pooled(shares[0][1], elements),
        flushed=_percentile(flushed),
        saturated=_percentile(saturated),
        worst=float(flushed[worst]),
        worst_step=int(rows.step[worst]),
    )


def _worse(shares: list[tuple[Doubles, Doubles]]) -> tuple[Doubles, Doubles]:
    """The shares of each row in the direction that flushes more of it, float64 [n] each."""
    flushed, saturated = (np.stack([each[kind][:, 0] for each in shares]) for kind in (0, 1))
    worse = flushed.argmax(axis=0), np.arange(flushed.shape[1])
    return flushed[worse], saturated[worse]


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


def _pooled(shares: Doubles, elements: Ints) -> Bounded:
    """The share over all elements of several rows."""
    weighted = (shares * elements[:, None]).sum(axis=0) / elements.sum()
    value, low, high = weighted.tolist()
    return Bounded.within(value, low, max(low, high))


def _percentile(values: Doubles) -> float:
    return float(np.quantile(values, PERCENTILE, method="higher"))
