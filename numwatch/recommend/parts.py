"""What recipes that scale parts of a tensor would do to it: from its block counts, or bounded."""

from __future__ import annotations

from dataclasses import replace

from numwatch.formats import BlockFormat, Format, ScaleRule
from numwatch.recipes.blockwise import SQUARE, MXScaling, NVFP4Scaling, RowScaling
from numwatch.recipes.spec import Recipe
from numwatch.recommend.block_rows import Blocks
from numwatch.stats import BlockHistogram, Bounded, TensorStats
from numwatch.stats.predict_blocks import block_errors, block_shares, row_errors, row_shares

_HALF, _LARGEST = 16, 32
"""Sizes of the blocks that are counted; what has larger parts is bounded by these."""


def part_shares(
    stats: TensorStats,
    fmt: Format | BlockFormat,
    recipe: Recipe,
    blocks: Blocks,
    direction: str,
    length: int | None = None,
) -> tuple[Bounded, Bounded]:
    """Returns the shares that a recipe of parts would flush and saturate.

    Args:
        stats: What the tensor looked like.
        fmt: A block format, or an element format under `RowScaling`.
        recipe: The recipe.
        blocks: The tensor's block counts; empty where none were taken.
        direction: Along which dimension parts run, `last` or `across`.
        length: Elements in a row along it, where known.
    """
    histogram = _histogram(fmt, blocks, direction)
    if isinstance(fmt, BlockFormat):
        shaped = _shaped(fmt, recipe)
        half = blocks.get((_HALF, direction))
        shares = block_shares(stats, histogram, shaped, _rule(recipe), half=half)
        if shaped == fmt:
            return shares
        # A square block runs along both: what either direction says of it holds.
        other = _histogram(fmt, blocks, "across" if direction == "last" else "last")
        others = block_shares(stats, other, shaped, _rule(recipe))
        return _both(shares[0], others[0]), _both(shares[1], others[1])
    return row_shares(stats, histogram, fmt, power_of_two=_power_of_two(recipe), length=length)


def part_errors(
    stats: TensorStats, fmt: Format | BlockFormat, recipe: Recipe, blocks: Blocks, direction: str
) -> tuple[float, float]:
    """Returns median relative error and SQNR in dB, estimated; arguments as of `part_shares`."""
    histogram = _histogram(fmt, blocks, direction)
    if isinstance(fmt, BlockFormat):
        fmt = _shaped(fmt, recipe)
        return block_errors(stats, histogram, fmt, _rule(recipe))
    return row_errors(stats, histogram, fmt, power_of_two=_power_of_two(recipe))


def _histogram(fmt: Format | BlockFormat, blocks: Blocks, direction: str) -> BlockHistogram | None:
    size = fmt.block[1] if isinstance(fmt, BlockFormat) else _LARGEST
    return blocks.get((min(size, _LARGEST), direction))


def _shaped(fmt: BlockFormat, recipe: Recipe) -> BlockFormat:
    """The format with the blocks that the recipe makes of it."""
    square = isinstance(recipe, NVFP4Scaling) and recipe.square
    return replace(fmt, block=SQUARE) if square else fmt


def _both(one: Bounded, other: Bounded) -> Bounded:
    low, high = max(one.low, other.low), min(one.high, other.high)
    return Bounded.within(min(one.value, other.value), low, max(high, low))


def _rule(recipe: Recipe) -> ScaleRule | None:
    return recipe.rule if isinstance(recipe, MXScaling) else None


def _power_of_two(recipe: Recipe) -> bool:
    return isinstance(recipe, RowScaling) and recipe.power_of_two
