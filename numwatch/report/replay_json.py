"""A replay as `numwatch replay --json` gives it."""

from __future__ import annotations

from typing import Any

from numwatch.replay import LossCourse, Replay, SlotReplay
from numwatch.report.plain import plain

STEPS_TOLD = 200_000
"""Entries step by step, over all slots: some 20 MB of text."""


def replay_dict(found: Replay, steps_told: int = STEPS_TOLD) -> dict[str, Any]:
    """Returns plain values for JSON: every slot's figures, and the steps of the worst of them.

    Args:
        found: The replay.
        steps_told: How many entries step by step at most, over all slots. A slot has all of its
            own, or null.
    """
    slots = []
    left = steps_told
    for one in found.slots:
        left -= len(one.step)
        slots.append({**_figures(one), "at_steps": _at_steps(one) if left >= 0 else None})
    return {
        "recipe": found.recipe,
        "steps": found.steps,
        "recorded": found.recorded,
        "certain": found.certain,
        "history_seen": plain(found.history_seen),
        "block_rows": found.block_rows,
        "skipped": found.skipped,
        "doubtful": found.doubtful,
        "loss_scale": None if found.loss is None else _course(found.loss),
        "slots": slots,
    }


def _course(course: LossCourse) -> dict[str, Any]:
    return {
        "step": course.step.tolist(),
        "scale": plain(course.scale.tolist()),
        "skipped": course.step[course.skipped].tolist(),
        "doubtful": course.step[course.doubtful].tolist(),
    }


def _figures(one: SlotReplay) -> dict[str, Any]:
    return {
        "slot": one.slot,
        "format": one.format,
        "certain": one.certain,
        "reach": plain(one.reach),
        "steps_known": one.steps_known,
        "steps_saturating": one.steps_saturating,
        "saturated": plain(one.pooled_saturated),
        "worst_saturated": one.worst_saturated,
        "flushed": plain(one.pooled_flushed),
        "worst_flushed": one.worst_flushed,
        "median_wasted": plain(one.median_wasted),
    }


def _at_steps(one: SlotReplay) -> dict[str, Any]:
    return {
        "step": one.step.tolist(),
        "start": one.start.tolist(),
        "scale": plain(one.scale.tolist()),
        "saturates": one.saturates.tolist(),
        "saturated": plain(one.saturated.tolist()),
        "flushed": plain(one.flushed.tolist()),
        "wasted": plain(one.wasted.tolist()),
    }
