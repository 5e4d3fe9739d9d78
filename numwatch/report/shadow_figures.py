"""What shadow steps measured of each gradient."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from numwatch.record.totals import SlotTotals, Totals
from numwatch.report.figures import totals_figures
from numwatch.snapshot import SlotInfo
from numwatch.stats import Bounded

_COUNTS = ("sampled", "zeros", "run_zeros", "flushed")
_MEANS = ("relative_error", "cosine")


@dataclass(frozen=True)
class ShadowFigures:
    """A gradient slot over all its shadow steps; see `numwatch.step_entries.Shadow`.

    Attributes:
        steps: Shadow steps that saw it.
        sampled: Elements compared in all of them; so with `zeros`, `run_zeros` and `flushed`.
        flushed_share: Share of the elements that FP32 has that are gone; None where it has none.
        relative_error: Mean over the steps; None where never defined.
        cosine: Likewise.
        estimate: What the run's own rows alone say is flushed, of all steps recorded in full.
    """

    slot: str
    steps: int
    sampled: int
    zeros: int
    run_zeros: int
    flushed: int
    flushed_share: float | None
    relative_error: float | None
    cosine: float | None
    estimate: Bounded | None = None

    @property
    def measured(self) -> Bounded | None:
        """The flushed share, exact within the sample."""
        return None if self.flushed_share is None else Bounded.exactly(self.flushed_share)


def read_shadows(tables: Iterable[pa.Table]) -> dict[str, ShadowFigures]:
    """Returns what pieces of the `shadows` table say, by slot."""
    pieces = list(tables)
    if not pieces:
        return {}
    table = pa.concat_tables(pieces)
    columns = {name: table[name] for name in ("slot", *_COUNTS)}
    for name in _MEANS:
        finite = pc.is_finite(table[name])
        columns[name] = pc.if_else(finite, table[name], None)
    rows = (
        pa.table(columns)
        .group_by("slot", use_threads=False)
        .aggregate(
            [
                ([], "count_all"),
                *((name, "sum") for name in _COUNTS),
                *((name, "mean") for name in _MEANS),
            ]
        )
    )
    return {row["slot"]: _figures(row) for row in rows.to_pylist()}


def beside_estimates(
    shadows: Iterable[ShadowFigures], totals: Totals, slots: Mapping[str, SlotInfo]
) -> tuple[ShadowFigures, ...]:
    """Returns the figures with what the run's own rows alone say, the most flushed first."""
    lines = tuple(shadows)
    by_slot = totals.by_slot() if lines else {}
    found = [
        replace(line, estimate=_estimate(by_slot.get(line.slot), slots.get(line.slot)))
        for line in lines
    ]
    return tuple(sorted(found, key=lambda line: line.flushed_share or 0.0, reverse=True))


def _estimate(totals: SlotTotals | None, info: SlotInfo | None) -> Bounded | None:
    if totals is None:
        return None
    return totals_figures(totals, info, scaled=False, finite_seen=True).flushed


def _figures(row: dict[str, Any]) -> ShadowFigures:
    counts = {name: row[f"{name}_sum"] for name in _COUNTS}
    nonzero = counts["sampled"] - counts["zeros"]
    return ShadowFigures(
        slot=row["slot"],
        steps=row["count_all"],
        flushed_share=counts["flushed"] / nonzero if nonzero else None,
        **counts,
        **{name: row[f"{name}_mean"] for name in _MEANS},
    )
