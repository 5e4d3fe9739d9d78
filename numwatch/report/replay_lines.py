"""A replay as `numwatch replay` prints it: who suffers most, the worst over time, what is sure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.text import Text

from numwatch.replay import Replay, SlotReplay, Swept
from numwatch.replay.columns import Doubles
from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled
from numwatch.report.text import (
    bits_text,
    bounded_text,
    known_text,
    scale_text,
    several,
    share_text,
    sparkline,
)

_HEAD = ("format", "saturates", "saturated", "flushed", "at worst", "wasted")
_SWEPT = ("recipe", "steps saturating", "saturated", "flushed", "wasted")
_BARS = 60
_LEAST = 2.0**-149
"""A loss scale of 0 stands as low as FP32 goes."""
_SHOWN_BITS = 0.05


def replay_lines(found: Replay, worst: int) -> list[Text]:
    """Returns the worst slots, the worst one's scale over time, and what gaps leave open.

    Args:
        found: The replay.
        worst: How many slots at most.
    """
    lines = [labelled("recipe", Text(found.recipe, style="bold"))]
    lines.append(
        labelled("seen", Text(f"{found.recorded} of {several(found.steps, 'step')} were recorded"))
    )
    if found.block_rows:
        lines.append(labelled("blocks", Text(f"counted in {several(found.block_rows, 'tensor')}")))
    lines += _loss_scale(found)
    if not found.slots:
        return [*lines, Text("the run recorded no tensor that this recipe scales")]
    noun = "operand" if found.loss is None else "gradient"
    cells = [_cells(one) for one in found.slots[:worst]]
    lines += [Text(), *column_lines((noun, *_HEAD), cells, "llrrrrr")]
    hidden = len(found.slots) - worst
    if hidden > 0:
        suffer = "suffers" if hidden == 1 else "suffer"
        lines.append(Text(f"{several(hidden, f'more {noun}')} {suffer} less", style="dim"))
    over_time = list(_over_time(found.slots[0]))
    notes = [Text(note, style="dim") for note in _notes(found)]
    return [
        *lines,
        *([Text(), *over_time] if over_time else []),
        *([Text()] if notes else []),
        *notes,
    ]


def sweep_lines(rows: Sequence[Swept]) -> list[Text]:
    """Returns a table of the settings, the best first."""
    scaler = any(row.skipped is not None for row in rows)
    gaps = any(row.history_seen is not None and row.history_seen < 1 for row in rows)
    head = (*_SWEPT, *(("skipped",) if scaler else ()), *(("history seen",) if gaps else ()))
    cells = []
    for row in rows:
        line = [
            Text(row.recipe, style="bold"),
            Text(share_text(row.steps_saturating)),
            Text(bounded_text(row.saturated)),
            Text(bounded_text(row.flushed)),
            Text(bits_text(row.wasted)),
        ]
        line += [Text(str(row.skipped))] if scaler else []
        line += [Text(known_text(row.history_seen))] if gaps else []
        cells.append(line)
    return [
        *column_lines(head, cells, "l" + "r" * (len(head) - 1)),
        Text(
            f"best first: fewest steps {'skipped' if scaler else 'that saturate'}, then least "
            "flushed, then least wasted",
            style="dim",
        ),
        *(Text(note, style="dim") for note in (_UNSEEN if gaps else ())),
    ]


_UNSEEN = (
    "larger amaxes that were not recorded would lower the scale: less saturates, more is flushed;",
    "`amax_every_n_steps=1` records them all",
)


def _loss_scale(found: Replay) -> Iterator[Text]:
    if found.loss is None or not len(found.loss.scale):
        return
    scales, skips = found.loss.scale, several(found.skipped or 0, "step")
    first, last = scale_text(float(scales[0])), scale_text(float(scales[-1]))
    if scales.min() == scales.max():
        yield labelled("loss scale", Text(f"{first} throughout"))
    else:
        bars = sparkline(_lowest(np.log2(np.maximum(scales, _LEAST))))
        yield labelled("loss scale", Text(f"{first} → {last}  {bars}"))
    doubt = ""
    if found.doubtful:
        doubt = (
            f"; of {several(found.doubtful, 'step')} nothing tells: the last gradients seen stand"
        )
    yield labelled("skipped", Text(f"{skips} would be skipped{doubt}"))


def _cells(one: SlotReplay) -> list[Text]:
    return [
        Text(one.slot, style="bold"),
        Text(one.format),
        Text(f"{one.steps_saturating} of {one.steps_known}"),
        Text(bounded_text(one.pooled_saturated)),
        Text(bounded_text(one.pooled_flushed)),
        Text(share_text(one.worst_flushed)),
        Text(bits_text(one.median_wasted)),
    ]


def _over_time(one: SlotReplay) -> Iterator[Text]:
    """A slot's scale in force, where it saturates and what headroom it wastes."""
    known = np.isfinite(one.scale) & (one.scale > 0) & ~one.start
    if not known.any():
        return
    scale, wasted = one.scale[known], np.nan_to_num(one.wasted[known])
    step = one.step[known]
    yield labelled("worst", Text(f"{one.slot}, step {step[0]} to {step[-1]}"))
    ends = f"{scale_text(float(scale.min()))} to {scale_text(float(scale.max()))}"
    yield labelled("scale", Text(f"{sparkline(_lowest(np.log2(scale)))}  {ends}"))
    marks = ["!" if -low else "·" for low in _lowest(-one.saturates[known].astype(np.float64))]
    if "!" in marks:
        yield labelled("saturates", Text("".join(marks)))
    if wasted.max() >= _SHOWN_BITS:
        most = bits_text(float(wasted.max()))
        yield labelled("wasted", Text(f"{sparkline(_lowest(wasted))}  up to {most}"))


def _notes(found: Replay) -> Iterator[str]:
    """What the figures leave out, and what they rest on that nobody saw."""
    reaches = [one.reach for one in found.slots if one.reach is not None]
    if any(one.start.any() for one in found.slots):
        yield "a tensor's first step is cast at scale 1, whatever it holds: it counts in no figure"
    seen = found.history_seen
    if seen is not None and seen < 1:
        yield f"{share_text(seen)} of the amaxes in the histories were recorded"
        yield from _UNSEEN
    blind = sum(reach.blind for reach in reaches)
    if blind:
        rows = sum(one.steps_known for one in found.slots)
        yield f"{blind} of {rows} histories held no recorded one: for them the last one seen stands"
    if any(reach.merged for reach in reaches):
        yield "micro-batches of a step are replayed as one cast; the recipe moves at each of them"
    if found.block_rows == 0:
        yield "no block counts in this record: the bounds are those of any blocks"


def _lowest(values: Doubles) -> list[float]:
    """The lowest value of each of at most `_BARS` stretches of a course."""
    count = min(len(values), _BARS)
    cuts = [math.floor(i * len(values) / count) for i in range(count + 1)]
    return [float(values[a:b].min()) for a, b in itertools.pairwise(cuts)]
