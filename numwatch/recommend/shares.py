"""What a format and a recipe would do to all kept rows of an operand at once.

The same shares as `predicted_shares` gives of each.
"""

from __future__ import annotations

import numpy as np

from numwatch.formats import BlockFormat, Format
from numwatch.recipes.blockwise import MXScaling, RowScaling
from numwatch.recipes.scaling import CurrentScaling, StaticScaling
from numwatch.recipes.spec import Recipe
from numwatch.recommend.history import Rows
from numwatch.recommend.parts import part_shares
from numwatch.stats.cuts_of_rows import shares_at_most
from numwatch.stats.histograms import Doubles
from numwatch.stats.predict_uncounted import uncounted_block_shares, uncounted_row_shares


def shares_of_rows(
    rows: Rows, fmt: Format | BlockFormat, recipe: Recipe, direction: str, length: int | None
) -> tuple[Doubles, Doubles]:
    """Returns how much of each row a format would flush and saturate.

    Args:
        rows: n rows with elements; all of them with block counts, or none.
        fmt: The format.
        recipe: How its scale is chosen.
        direction: `last` or `across`, for recipes that scale parts.
        length: Elements in a row along that direction, where known.

    Returns:
        Shares of the finite non-zero elements, float64 [n, 3] each, as value, low and high.

    Raises:
        ValueError: The recipe's scale depends on other steps.
    """
    if isinstance(fmt, BlockFormat) or isinstance(recipe, RowScaling):
        if any(rows.blocks):
            return _counted(rows, fmt, recipe, direction, length)
        return _uncounted(rows, fmt, recipe, length)
    if isinstance(recipe, CurrentScaling):
        with np.errstate(over="ignore"):
            scale = recipe.over(rows.amax.astype(np.float32), fmt).astype(np.float64)
        # Its own amax is what it is scaled by: the clamp takes off no more than the rounding.
        return shares_at_most(rows, fmt.flush_threshold, scale), np.zeros((len(rows), 3))
    if isinstance(recipe, StaticScaling):
        # Seen at a loss scale, and to be trained without one.
        scale = recipe.scale / rows.loss_scale
        above = 1.0 - shares_at_most(rows, fmt.max, scale)[:, [0, 2, 1]]
        return shares_at_most(rows, fmt.flush_threshold, scale), above
    raise ValueError(f"{recipe.name} has no scale that this tensor alone tells")


def _counted(
    rows: Rows, fmt: Format | BlockFormat, recipe: Recipe, direction: str, length: int | None
) -> tuple[Doubles, Doubles]:
    found = np.zeros((2, len(rows), 3))
    for row, blocks in enumerate(rows.blocks):
        shares = part_shares(rows.stats(row), fmt, recipe, blocks, direction, length)
        found[:, row] = [(share.value, share.low, share.high) for share in shares]
    return found[0], found[1]


def _uncounted(
    rows: Rows, fmt: Format | BlockFormat, recipe: Recipe, length: int | None
) -> tuple[Doubles, Doubles]:
    if isinstance(fmt, BlockFormat):
        rule = recipe.rule if isinstance(recipe, MXScaling) else None
        return uncounted_block_shares(rows, rows.numel, fmt, rule)
    power_of_two = isinstance(recipe, RowScaling) and recipe.power_of_two
    return uncounted_row_shares(rows, rows.numel, fmt, power_of_two=power_of_two, length=length)
