"""A replay as `numwatch replay` prints it: who suffers most, the worst over time, what is sure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from numwatch.replay import Replay, SlotReplay, Swept
from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled
from numwatch.report.plain import plain
from numwatch.report.text import (
    bits_text,
    bounded_text,
    scale_text,
    several,
    share_text,
    sparkline,
)

_HEAD = ("operand", "format", "saturates", "saturated", "flushed", "worst", "wasted")
_SWEPT = ("recipe", "steps saturating", "saturated", "flushed", "wasted")
_BARS = 60


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
    if found.loss_scale is not None:
        lines += _loss_scale(found)
    if not found.slots:
        return [*lines, Text("the run recorded no tensor that this recipe scales")]
    lines += [Text(), *column_lines(_HEAD, [_cells(one) for one in found.slots[:worst]], "llrrrrr")]
    hidden = len(found.slots) - worst
    if hidden > 0:
        lines.append(Text(f"{several(hidden, 'operand')} more suffer less", style="dim"))
    lines += [Text(), *_over_time(found.slots[0])]
    return lines + _doubts(found)


def sweep_lines(rows: Sequence[Swept]) -> list[Text]:
    """Returns a table of the settings, the best first."""
    scaler = any(row.skipped is not None for row in rows)
    head = (*_SWEPT, "skipped") if scaler else _SWEPT
    cells = []
    for row in rows:
        line = [
            Text(row.recipe, style="bold"),
            Text(share_text(row.steps_saturating)),
            Text(bounded_text(row.saturated)),
            Text(bounded_text(row.flushed)),
            Text(bits_text(row.wasted)),
        ]
        cells.append([*line, Text(str(row.skipped))] if scaler else line)
    return [
        *column_lines(head, cells, "lrrrr" + "r" * scaler),
        Text(
            "best first: fewest steps that saturate, then least flushed, then least wasted",
            style="dim",
        ),
    ]


def replay_dict(found: Replay) -> dict[str, Any]:
    """Returns plain values for JSON: each slot's figures and its steps."""
    return {
        "recipe": found.recipe,
        "steps": found.steps,
        "recorded": found.recorded,
        "certain": found.certain,
        "skipped": found.skipped,
        "doubtful": found.doubtful,
        "slots": [_slot_dict(one) for one in found.slots],
    }


def _slot_dict(one: SlotReplay) -> dict[str, Any]:
    return {
        "slot": one.slot,
        "format": one.format,
        "certain": one.certain,
        "steps_saturating": one.steps_saturating,
        "saturated": plain(one.pooled_saturated),
        "flushed": plain(one.pooled_flushed),
        "median_wasted": plain(one.median_wasted),
        "step": one.step.tolist(),
        "scale": plain(one.scale.tolist()),
        "saturates": one.saturates.tolist(),
        "saturated_at": plain(one.saturated.tolist()),
        "flushed_at": plain(one.flushed.tolist()),
        "wasted": plain(one.wasted.tolist()),
    }


def _loss_scale(found: Replay) -> Iterator[Text]:
    scales = found.loss_scale
    if scales is None or not len(scales):
        return
    bars = sparkline(np.log2(np.maximum(scales, 1e-300))[_places(len(scales))].tolist())
    ends = f"{scale_text(float(scales[0]))} → {scale_text(float(scales[-1]))}"
    yield labelled("loss scale", Text(f"{ends}  {bars}"))
    skipped = f"{several(found.skipped or 0, 'step')} would be skipped"
    if found.doubtful:
        skipped += f"; of {several(found.doubtful, 'step')} it is not known"
    yield labelled("skipped", Text(skipped))


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
    """The scale in force of a slot, and where it saturates."""
    known = np.isfinite(one.scale) & (one.scale > 0)
    if not known.any():
        return
    places = np.flatnonzero(known)[_places(int(known.sum()))]
    bars = sparkline(np.log2(one.scale[places]).tolist())
    low, high = float(one.scale[known].min()), float(one.scale[known].max())
    yield labelled("worst", Text(f"{one.slot}, step {one.step[0]} to {one.step[-1]}"))
    yield labelled("scale", Text(f"{bars}  {scale_text(low)} to {scale_text(high)}"))
    marks = "".join("!" if mark else "·" for mark in one.saturates[places].tolist())
    if "!" in marks:
        yield labelled("saturates", Text(marks))


def _doubts(found: Replay) -> list[Text]:
    if found.certain:
        return []
    return [
        Text(),
        Text(
            "the scale in force rests on amaxes that were not recorded: between recorded steps the "
            "last one seen stands; `amax_every_n_steps=1` would tell",
            style="dim",
        ),
    ]


def _places(n: int) -> list[int]:
    count = min(n, _BARS)
    return [math.floor(i * n / count) for i in range(count)]
