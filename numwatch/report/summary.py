"""`summarize`: what a person should know of a run or of one epoch of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.recipes import Collapse
from numwatch.record import Run
from numwatch.record.ahead import read_ahead
from numwatch.record.gradients import gradient_groups
from numwatch.record.totals import Totals, read_totals
from numwatch.report.coverage import Coverage
from numwatch.report.figures import SlotFigures, totals_figures
from numwatch.report.parameter_slots import in_trouble, is_parameters, low_format
from numwatch.report.plain import plain
from numwatch.report.scale_window import ScaleWindow, scale_window
from numwatch.report.shadow_figures import ShadowFigures, beside_estimates, read_shadows
from numwatch.report.state_figures import StateFigures, read_states
from numwatch.report.trajectory import (
    LossScale,
    Skips,
    collapse_of,
    loss_scale_of,
    skips_of,
)
from numwatch.report.update_figures import Updates, read_updates
from numwatch.report.verdict import VERDICTS
from numwatch.snapshot import SlotInfo, path_of


@dataclass(frozen=True)
class Summary:
    """What `print_summary` prints and `--json` gives.

    Attributes:
        epoch: The epoch it is about, None for the whole run.
        steps: Optimizer steps recorded, skipped ones included.
        first_step: Number of the first; None where there is none.
        last_step: Number of the last.
        slots: Slots of modules with at least one row.
        parameters: Parameters whose updates or optimizer's state were seen.
        full_steps: Steps whose tensors were measured in full.
        amax_steps: Steps of whose tensors amax alone was measured.
        thinned_steps: Steps of whose tensors rows were measured and not kept.
        cost: numwatch's own time as a share of the time the steps took without it; None where not
            measured.
        start_seconds: Time it took before the first step, of all attempts; None for an epoch.
        memory: The most bytes it held at once in any attempt; None where not measured.
        loss: Of the first and of the last step that has one.
        loss_scale: None where nothing is scaled.
        collapse: The last time the loss scale was seen on its way to 0, or None.
        window: Which loss scales FP16 gradients fit, be there a scaler or not; None where no
            gradient was measured in full.
        updates: What storing weights in each format does to their updates; None where not seen.
        states: The optimizer's state, in order of appearance.
        shadows: What shadow steps measured of each gradient.
        verdicts: How many slots got each verdict, those of parameters only where in trouble.
        tensors: The worst of these slots, the worst first.
        unseen: What the record does not hold because it could not be seen.
        problems: What of the record could not be read.
    """

    epoch: int | None
    precision: str
    device: str
    attempts: int
    steps: int
    first_step: int | None
    last_step: int | None
    slots: int
    parameters: int
    full_steps: int
    amax_steps: int
    thinned_steps: int
    cost: float | None
    start_seconds: float | None
    memory: int | None
    loss: tuple[float, float] | None
    loss_scale: LossScale | None
    skips: Skips
    collapse: Collapse | None
    window: ScaleWindow | None
    updates: Updates | None
    states: tuple[StateFigures, ...]
    shadows: tuple[ShadowFigures, ...]
    verdicts: dict[str, int]
    tensors: tuple[SlotFigures, ...]
    unseen: tuple[str, ...]
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; what it has no number for reads "Infinity" or "NaN"."""
        content: dict[str, Any] = plain(self)
        return content


@np.errstate(all="ignore")  # a hostile record's NaN and infinities come out as such
def summarize(run: Run, *, epoch: int | None = None, worst: int = 12) -> Summary:
    """Returns the summary of a run, or of one epoch.

    Args:
        run: The record.
        epoch: Just the steps of this epoch; one without any gives a summary that says so.
        worst: How many slots at most.
    """
    steps = run.steps()
    if epoch is not None:
        steps = steps.filter(pc.field("epoch") == epoch)
    first, last = _ends(steps, "step")
    empty = epoch is not None and first is None

    def pieces(table: str) -> Iterable[pa.Table]:
        return () if empty else run.batches(table, first=first, last=last)

    coverage = Coverage()
    totals = read_totals(coverage.passing(read_ahead(pieces("tensors"))))
    shadows = read_shadows(pieces("shadows"))
    figures = _figures(totals, coverage, run.slots, shadows)
    shown = [line for line in figures if not is_parameters(line.slot) or in_trouble(line)]
    updates = read_updates(pieces("updates"), low_format(run.slots))
    states = read_states(pieces("states"))
    events = [event for event in run.events() if epoch is None or _within(event, first, last)]
    return Summary(
        epoch=epoch,
        precision=run.precision,
        device=run.device,
        attempts=len(run.attempts),
        steps=steps.num_rows,
        first_step=first,
        last_step=last,
        slots=sum(not is_parameters(line.slot) for line in figures),
        parameters=_parameters(figures, updates, states),
        full_steps=coverage.full_steps,
        amax_steps=coverage.amax_steps,
        thinned_steps=sum(e["kind"] == "thinned" and "tensors" in e for e in events),
        cost=_cost(steps),
        start_seconds=None if epoch is not None else _start_seconds(run),
        memory=_memory(run),
        loss=_loss(steps),
        loss_scale=loss_scale_of(steps),
        skips=skips_of(run, steps),
        collapse=collapse_of(events, steps),
        window=scale_window(
            gradient_groups(totals, run.slots),
            steps["loss_scale_before"].to_pylist(),
            steps["skipped"].to_pylist(),
        ),
        updates=updates,
        states=states,
        shadows=beside_estimates(shadows.values(), totals, run.slots),
        verdicts={v: sum(line.verdict == v for line in shown) for v in VERDICTS},
        tensors=tuple(shown[:worst]),
        unseen=tuple(
            dict.fromkeys(e["note"] for e in events if e["kind"] == "unseen" and "note" in e)
        ),
        problems=tuple(run.problems),
    )


def epochs(run: Run) -> list[int]:
    """Returns the epochs that have steps in the record, rising."""
    found: list[int] = sorted(run.steps()["epoch"].unique().to_pylist())
    return found


def _figures(
    totals: Totals,
    coverage: Coverage,
    slots: Mapping[str, SlotInfo],
    shadows: Mapping[str, ShadowFigures],
) -> list[SlotFigures]:
    """Returns the figures of every slot, the worst first."""
    figures = [
        totals_figures(
            total,
            slots.get(slot),
            scaled=slot in coverage.scaled_slots,
            finite_seen=slot in coverage.finite_slots,
            shadow=shadows[slot].measured if slot in shadows else None,
        )
        for slot, total in totals.by_slot().items()
    ]
    return sorted(figures, key=lambda line: line.badness, reverse=True)


def _parameters(
    figures: Iterable[SlotFigures], updates: Updates | None, states: Iterable[StateFigures]
) -> int:
    names = {path_of(line.slot) for line in figures if is_parameters(line.slot)}
    names.update(line.parameter for line in states)
    if updates is not None:
        names.update(line.parameter for line in updates.parameters)
    return len(names)


def _ends(table: pa.Table, column: str) -> tuple[Any, Any]:
    if not table.num_rows:
        return None, None
    return table[column][0].as_py(), table[column][-1].as_py()


def _cost(steps: pa.Table) -> float | None:
    own = pc.sum(steps["numwatch_seconds"]).as_py() or 0.0
    without = (pc.sum(steps["step_seconds"]).as_py() or 0.0) - own
    return own / without if without > 0 else None


def _start_seconds(run: Run) -> float:
    starts = [event for event in run.events() if event["kind"] == "start"]
    return sum(float(event.get("numwatch_seconds", 0.0)) for event in starts)


def _memory(run: Run) -> int | None:
    found = [event.get("bytes") for event in run.events() if event["kind"] == "memory"]
    return max((int(size) for size in found if size is not None), default=None)


def _within(event: Mapping[str, Any], first: int | None, last: int | None) -> bool:
    return first is not None and last is not None and first <= event["step"] <= last


def _loss(steps: pa.Table) -> tuple[float, float] | None:
    losses = steps.filter(pc.field("loss").is_valid())
    return _ends(losses, "loss") if losses.num_rows else None
