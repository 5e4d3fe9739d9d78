"""One recipe with many settings, replayed and ranked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from numwatch.errors import NumwatchError
from numwatch.recipes.spec import parse_any_recipe, recipe_text
from numwatch.replay.figures import pooled_flushed, pooled_saturated
from numwatch.replay.replay import Replay
from numwatch.stats import Bounded


@dataclass(frozen=True)
class Swept:
    """One setting.

    Attributes:
        recipe: The recipe as text.
        steps_saturating: Share of all slots' recorded steps that saturate.
        saturated: Share of all elements above the largest value; None where nothing tells.
        flushed: Share that becomes zero, likewise.
        wasted: Median of the slots' median wasted bits; NaN where nothing tells.
        skipped: Steps a loss scaler would skip; None for others.
        history_seen: Share of the amaxes in the histories that were recorded; None for rules that
            don't look back.
    """

    recipe: str
    steps_saturating: float
    saturated: Bounded | None
    flushed: Bounded | None
    wasted: float
    skipped: int | None
    history_seen: float | None


def grid(recipe: str, axes: Iterable[str]) -> list[str]:
    """Returns every recipe of a grid as text.

    Args:
        recipe: What all have in common, `delayed:margin=1`.
        axes: `key=value,value` each.

    Raises:
        NumwatchError: An axis is not of that form, or a value is none of the recipe's.
    """
    name, _, rest = recipe.partition(":")
    known = _settings(rest)
    values: dict[str, list[str]] = {}
    for axis in axes:
        key, equals, listed = axis.partition("=")
        values[key.strip()] = [value.strip() for value in listed.split(",") if value.strip()]
        if not equals or not values[key.strip()]:
            raise NumwatchError(f"--sweep takes key=value,value; got {axis!r}")
    texts = []
    for chosen in product(*values.values()):
        pairs = {**known, **dict(zip(values, chosen, strict=True))}
        text = name + ":" + ",".join(f"{key}={value}" for key, value in pairs.items())
        texts.append(recipe_text(parse_any_recipe(text)))
    return list(dict.fromkeys(texts))


def sweep(recipes: Sequence[str], replayed: Callable[[str], Replay]) -> list[Swept]:
    """Returns each recipe's figures, best first.

    The fewest steps that saturate (or are skipped), then the least flushed, then the least
    headroom wasted.

    Args:
        recipes: As text.
        replayed: Replays one.
    """
    rows = [_swept(replayed(recipe)) for recipe in recipes]
    return sorted(rows, key=_rank)


def _swept(found: Replay) -> Swept:
    steps = sum(slot.steps_known for slot in found.slots)
    wasted = [slot.median_wasted for slot in found.slots if not math.isnan(slot.median_wasted)]
    return Swept(
        recipe=found.recipe,
        steps_saturating=sum(slot.steps_saturating for slot in found.slots) / max(steps, 1),
        saturated=pooled_saturated(found.slots),
        flushed=pooled_flushed(found.slots),
        wasted=float(np.median(wasted)) if wasted else math.nan,
        skipped=found.skipped,
        history_seen=found.history_seen,
    )


def _rank(row: Swept) -> tuple[float, float, float, float]:
    return (
        float(row.skipped or 0),
        row.steps_saturating,
        row.flushed.value if row.flushed else 0.0,
        0.0 if math.isnan(row.wasted) else row.wasted,
    )


def _settings(text: str) -> Mapping[str, str]:
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {key.strip(): value.strip() for key, _, value in pairs}
