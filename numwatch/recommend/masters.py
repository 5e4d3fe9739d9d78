"""Whether low weights need FP32 masters, from the updates they swallow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from numwatch.recommend.thresholds import SWALLOWED
from numwatch.snapshot import path_of

STORAGES = ("bf16", "fp16")


@dataclass(frozen=True)
class Masters:
    """What weights should be stored in.

    Attributes:
        weights: `fp32`, or the low format they are in where it loses little.
        reason: Why, with the figures.
    """

    weights: str
    reason: str


def choose_masters(updates: pa.Table) -> Masters | None:
    """Returns what weights should be stored in; None where no update was measured.

    Args:
        updates: The run's `updates` table.
    """
    known = updates.filter(pc.field("nonzero") > 0)
    lost = known.filter(pc.field("lost"))
    if lost.num_rows:
        storage = str(lost["storage"][lost.num_rows - 1])
        share, kept, edq = _pooled(lost)
        told = (
            f"{storage.upper()} weights lost {100 * share:.1f} % of their updates (normalised EDQ "
            f"{edq:.2f}; worst {_worst(lost)})"
        )
        if share < SWALLOWED:
            return Masters(storage, f"{told}: no FP32 masters needed")
        return Masters(
            "fp32",
            f"{told}; stochastic rounding would let {100 * kept / share:.0f} % of those arrive",
        )
    shares = []
    for storage in STORAGES:
        rows = known.filter(pc.field("storage") == storage)
        if rows.num_rows:
            shares.append(f"{storage.upper()} {100 * _pooled(rows)[0]:.1f} %")
    if not shares:
        return None
    return Masters(
        "fp32", f"without FP32 masters weights would lose of their updates: {', '.join(shares)}"
    )


def _pooled(rows: pa.Table) -> tuple[float, float, float]:
    """Swallowed share, share of it stochastic rounding keeps, normalised EDQ: by elements."""
    counts = rows["nonzero"].to_numpy().astype(np.float64)
    found = []
    for name in ("swallowed", "stochastic_kept", "edq_normalised"):
        values = rows[name].to_numpy(zero_copy_only=False).astype(np.float64)
        sound = np.isfinite(values)
        total = counts[sound].sum()
        found.append(float((values[sound] * counts[sound]).sum() / total) if total else 0.0)
    return found[0], found[1], found[2]


def _worst(rows: pa.Table) -> str:
    means = (
        rows.group_by("slot")
        .aggregate([("swallowed", "mean")])
        .sort_by([("swallowed_mean", "descending")])
    )
    return f"{path_of(str(means['slot'][0]))} {100 * means['swallowed_mean'][0].as_py():.0f} %"
