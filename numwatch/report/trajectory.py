"""How the loss scale went, which steps were skipped, and what made them."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from numwatch.recipes import Collapse
from numwatch.record import Run
from numwatch.snapshot import ROLES, SlotInfo

TREND_POINTS = 24


@dataclass(frozen=True)
class LossScale:
    """How the loss scale went.

    Attributes:
        first: Before the first step.
        last: After the last step.
        lowest: Of all steps, before and after.
        highest: Likewise.
        trend: log2 of the scale at up to `TREND_POINTS` evenly spread steps; the lowest of each
            stretch.
    """

    first: float
    last: float
    lowest: float
    highest: float
    trend: tuple[float, ...]


@dataclass(frozen=True)
class Skips:
    """Optimizer steps that left the weights alone.

    Attributes:
        count: How many.
        last: The last one's step.
        nonfinite: Slots that held NaN or inf in that step, with the count, in the order in which
            a step computes them; None where its tensors were not recorded.
        parameters: Parameters whose gradients did, in the order in which backward computes them;
            None where that was not looked at either.
    """

    count: int
    last: int | None = None
    nonfinite: tuple[tuple[str, int], ...] | None = None
    parameters: tuple[str, ...] | None = None


def loss_scale_of(steps: pa.Table) -> LossScale | None:
    """Returns how the loss scale went in rows of `steps`; None where nothing is scaled."""
    before = steps["loss_scale_before"].to_pylist()
    if not before:
        return None
    after = steps["loss_scale_after"].to_pylist()
    first, last = before[0], after[-1]
    lowest, highest = min(before + after), max(before + after)
    if lowest == highest == 1.0:
        return None
    # The scaler has no floor: a scale can end at 0.
    logs = [math.log2(scale) if scale > 0 else -math.inf for scale in [*before, last]]
    points = min(TREND_POINTS, len(logs))
    cuts = [len(logs) * i // points for i in range(points + 1)]
    trend = tuple(min(logs[a:b]) for a, b in itertools.pairwise(cuts))
    return LossScale(first, last, lowest, highest, trend)


def skips_of(run: Run, steps: pa.Table) -> Skips:
    """Returns the skipped steps among rows of the `steps` table of a run."""
    skipped = steps.filter(pc.field("skipped"))
    if not skipped.num_rows:
        return Skips(0)
    last = skipped["step"][-1].as_py()
    parameters = skipped["nonfinite_parameters"][-1].as_py()
    return Skips(
        count=skipped.num_rows,
        last=last,
        nonfinite=_nonfinite(run, last),
        parameters=None if parameters is None else _by_backward(parameters, run.slots),
    )


def collapse_of(events: Iterable[Mapping[str, Any]], steps: pa.Table) -> Collapse | None:
    """Returns the last collapse of the loss scale; None without one, or where it recovered.

    Args:
        events: Of the run.
        steps: Rows of `steps`; a step taken after the collapse tells of the recovery.
    """
    found = [event for event in events if event["kind"] == "collapse"]
    if not found:
        return None
    later = steps.filter(pc.field("step") > found[-1]["step"])
    scales = later["loss_scale_after"].to_pylist()
    ended = bool(scales) and scales[-1] == 0
    if not ended and not pc.all(later["skipped"], min_count=0).as_py():
        return None
    return Collapse(
        step=found[-1]["step"],
        scale=0.0 if ended else float(found[-1].get("scale", math.nan)),
        skipped_in_a_row=int(found[-1].get("skipped_in_a_row", 0)),
        zero_at_step=found[-1].get("zero_at_step"),
    )


def _nonfinite(run: Run, step: int) -> tuple[tuple[str, int], ...] | None:
    rows = run.tensors(first=step, last=step)
    rows = rows.filter(pc.field("nans").is_valid())
    if not rows.num_rows:
        return None
    counts = pc.add(rows["nans"], pc.add(rows["posinfs"], rows["neginfs"])).to_pylist()
    found = [(s, n) for s, n in zip(rows["slot"].to_pylist(), counts, strict=True) if n]
    return tuple(sorted(found, key=lambda slot: _time_of(run.slots.get(slot[0]))))


def _time_of(info: SlotInfo | None) -> tuple[int, int]:
    """Sort key of when in a step a slot is first seen; what the optimizer does comes last."""
    if info is not None and info.role not in ROLES:
        return (2, 0)
    return (1, 0) if info is None or info.order is None else (0, info.order)


def _by_backward(parameters: Sequence[str], slots: Mapping[str, SlotInfo]) -> tuple[str, ...]:
    """Parameters in the order in which backward comes to their modules.

    Known from the modules' gradients where they are watched, else from their outputs, of which the
    last comes first; of modules that are not watched last.
    """
    gradients: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for info in slots.values():
        if info.order is not None and info.role in ROLES:
            times = gradients if info.scaled else outputs
            times[info.module] = min(info.order, times.get(info.module, info.order))

    def time(name: str) -> tuple[int, int]:
        module = name.rpartition(".")[0]
        if module in gradients:
            return (0, gradients[module])
        return (1, -outputs[module]) if module in outputs else (2, 0)

    return tuple(sorted(parameters, key=time))
