"""`summarize`: what a person should know of a run or of one epoch of it."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record import Run
from numwatch.record.totals import SlotTotals, slot_totals
from numwatch.report.coverage import Coverage
from numwatch.report.figures import SlotFigures, totals_figures
from numwatch.report.verdict import VERDICTS
from numwatch.snapshot import SlotInfo

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
    """

    count: int
    last: int | None = None
    nonfinite: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class Summary:
    """What `print_summary` prints and `--json` gives.

    Attributes:
        epoch: The epoch it is about, None for the whole run.
        steps: Optimizer steps recorded, skipped ones included.
        first_step: Number of the first; None where there is none.
        last_step: Number of the last.
        slots: Slots with at least one row.
        full_steps: Steps whose tensors were measured in full.
        amax_steps: Steps of whose tensors amax alone was measured.
        cost: numwatch's own time as a share of the time the steps took without it; None where not
            measured.
        start_seconds: Time it took before the first step, of all attempts; None for an epoch.
        loss: Of the first and of the last step that has one.
        loss_scale: None where nothing is scaled.
        verdicts: How many slots got each verdict.
        tensors: The worst slots, the worst first.
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
    full_steps: int
    amax_steps: int
    cost: float | None
    start_seconds: float | None
    loss: tuple[float, float] | None
    loss_scale: LossScale | None
    skips: Skips
    verdicts: dict[str, int]
    tensors: tuple[SlotFigures, ...]
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; what it has no number for reads "Infinity" or "NaN"."""
        content = _plain(dataclasses.asdict(self))
        assert isinstance(content, dict)  # noqa: S101  # for mypy
        return content


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
    totals: dict[str, SlotTotals] = {}
    coverage = Coverage()
    if first is not None or epoch is None:
        totals = slot_totals(coverage.passing(run.tensor_batches(first=first, last=last)))
    figures = sorted(
        (
            totals_figures(
                total,
                run.slots.get(slot),
                scaled=slot in coverage.scaled_slots,
                finite_seen=slot in coverage.finite_slots,
            )
            for slot, total in totals.items()
        ),
        key=lambda line: line.badness,
        reverse=True,
    )
    return Summary(
        epoch=epoch,
        precision=run.precision,
        device=run.device,
        attempts=len(run.attempts),
        steps=steps.num_rows,
        first_step=first,
        last_step=last,
        slots=len(totals),
        full_steps=coverage.full_steps,
        amax_steps=coverage.amax_steps,
        cost=_cost(steps),
        start_seconds=None if epoch is not None else _start_seconds(run),
        loss=_loss(steps),
        loss_scale=_loss_scale(steps),
        skips=_skips(run, steps),
        verdicts={v: sum(line.verdict == v for line in figures) for v in VERDICTS},
        tensors=tuple(figures[:worst]),
        problems=tuple(run.problems),
    )


def epochs(run: Run) -> list[int]:
    """Returns the epochs that have steps in the record, rising."""
    found: list[int] = sorted(run.steps()["epoch"].unique().to_pylist())
    return found


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


def _loss(steps: pa.Table) -> tuple[float, float] | None:
    losses = steps.filter(pc.field("loss").is_valid())
    return _ends(losses, "loss") if losses.num_rows else None


def _loss_scale(steps: pa.Table) -> LossScale | None:
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


def _skips(run: Run, steps: pa.Table) -> Skips:
    skipped = steps.filter(pc.field("skipped"))
    if not skipped.num_rows:
        return Skips(0)
    last = skipped["step"][-1].as_py()
    return Skips(skipped.num_rows, last, _nonfinite(run, last))


def _nonfinite(run: Run, step: int) -> tuple[tuple[str, int], ...] | None:
    rows = run.tensors(first=step, last=step)
    rows = rows.filter(pc.field("nans").is_valid())
    if not rows.num_rows:
        return None
    counts = pc.add(rows["nans"], pc.add(rows["posinfs"], rows["neginfs"])).to_pylist()
    found = [(s, n) for s, n in zip(rows["slot"].to_pylist(), counts, strict=True) if n]
    return tuple(sorted(found, key=lambda slot: _time_of(run.slots.get(slot[0]))))


def _time_of(info: SlotInfo | None) -> tuple[bool, int]:
    """Sort key of when in a step a slot is computed: backward follows forward, reversed."""
    if info is None or info.order is None:
        return (True, 1)
    return (info.scaled, -info.order if info.scaled else info.order)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value
