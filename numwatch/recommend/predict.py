"""What a format and a recipe would do to a tensor of which only a row was kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numwatch.formats import BlockFormat, Format
from numwatch.recipes.blockwise import RowScaling
from numwatch.recipes.scaling import CurrentScaling, StaticScaling
from numwatch.recipes.spec import Recipe
from numwatch.recommend.block_rows import Blocks
from numwatch.recommend.parts import part_errors, part_shares
from numwatch.stats import Bounded, TensorStats
from numwatch.stats.derived import flushed, saturated

DIRECTIONS = ("last", "across")
"""Blocks and rows run along the last dimension, or across it, along the tokens."""


class Shares(NamedTuple):
    """Shares of the finite non-zero elements that become zero, and that are above the largest."""

    flushed: Bounded
    saturated: Bounded


class Errors(NamedTuple):
    """Median of |rounded - x| / |x|, and signal to quantisation noise in dB."""

    median_relative: float
    sqnr: float


def predicted_shares(
    stats: TensorStats,
    fmt: Format | BlockFormat,
    recipe: Recipe,
    *,
    blocks: Blocks | None = None,
    direction: str = "last",
    scale: float | None = None,
    length: int | None = None,
) -> Shares:
    """Returns how much of a tensor a format would flush and saturate.

    Args:
        stats: What the tensor looked like.
        fmt: The format.
        recipe: How its scale is chosen.
        blocks: Its block counts; without them block formats have wide bounds.
        direction: One of `DIRECTIONS`, for recipes that scale parts.
        scale: The scale in force, where the recipe does not give it from this tensor alone.
        length: Elements in a row along that direction, for `rowwise`; a guess by default.

    Raises:
        ValueError: A delayed recipe without `scale`.
    """
    if isinstance(fmt, BlockFormat) or isinstance(recipe, RowScaling):
        return Shares(*part_shares(stats, fmt, recipe, blocks or {}, direction, length))
    force = scale_of(stats, fmt, recipe) if scale is None else scale
    if isinstance(recipe, CurrentScaling) and scale is None:
        # Its own amax is what it is scaled by: the clamp takes off no more than the rounding.
        return Shares(flushed(stats, fmt, force), Bounded.exactly(0.0))
    return Shares(flushed(stats, fmt, force), saturated(stats, fmt, force))


def predicted_errors(
    stats: TensorStats,
    fmt: Format | BlockFormat,
    recipe: Recipe,
    *,
    blocks: Blocks | None = None,
    direction: str = "last",
    scale: float | None = None,
) -> Errors:
    """Returns the errors of rounding a tensor, estimated; arguments as of `predicted_shares`."""
    if isinstance(fmt, BlockFormat) or isinstance(recipe, RowScaling):
        return Errors(*part_errors(stats, fmt, recipe, blocks or {}, direction))
    force = scale_of(stats, fmt, recipe) if scale is None else scale
    return Errors(stats.median_relative_error(fmt, force), stats.sqnr(fmt, force))


def scale_of(stats: TensorStats, fmt: Format, recipe: Recipe) -> float:
    """Returns the scale of a recipe that looks at the tensor at hand alone.

    Raises:
        ValueError: The recipe looks at others too, or has no one scale.
    """
    if isinstance(recipe, StaticScaling):
        return recipe.scale
    if isinstance(recipe, CurrentScaling):
        with np.errstate(over="ignore"):  # FP64's amaxes may be beyond FP32
            amax = np.array([stats.amax]).astype(np.float32)
        return float(recipe.over(amax, fmt)[0])
    raise ValueError(f"{recipe.name} has no scale that this tensor alone tells")
