"""What the charts show of one row: amax, headroom, flushed, saturated, non-finite elements."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from numwatch.report.slot_formats import judged_format, known_format, stored_in
from numwatch.snapshot import Cast, Row, Rows, SlotInfo
from numwatch.stats import AMAX, estimate_flushed


@dataclass(frozen=True)
class Figures:
    """One row's figures, about what its format meets: gradients multiplied by the loss scale.

    None means not measured, unknown or undefined, never zero.

    Attributes:
        slot: Name of the slot, `<module path>:<role>`.
        amax: Largest finite magnitude; 0 where no element is finite and non-zero.
        loss_scale: What the row's numbers are multiplied by; 1 for forward roles.
        limits: log2 of the format's smallest normal and of its largest value, both divided by
            the scale of the row's cast: directly comparable with log2 of `amax`.
        flushed: Share of the finite non-zero elements that the format flushes to zero.
        flushed_estimate: The same for a tensor that is already in its format, where what was
            flushed can only be inferred; a row has at most one of the two.
        saturated: Share of the finite non-zero elements above the format's largest value.
        nonfinites: Count of NaN and infinite elements.
    """

    slot: str
    amax: float
    loss_scale: float = 1.0
    limits: tuple[float, float] | None = None
    flushed: float | None = None
    flushed_estimate: float | None = None
    saturated: float | None = None
    nonfinites: int | None = None

    @cached_property
    def log2_amax(self) -> float | None:
        """log2 of `amax`, None where that is 0."""
        return math.log2(self.amax) if 0 < self.amax < math.inf else None

    @cached_property
    def headroom(self) -> float | None:
        """Bits between `amax` and the format's largest value, negative once it saturates."""
        if self.limits is None or self.log2_amax is None:
            return None
        return self.limits[1] - self.log2_amax

    @property
    def trouble(self) -> tuple[float, float, float, float]:
        """Sort key, the worst slot has the largest: non-finite, saturated, flushed, no headroom."""
        flushed = self.flushed if self.flushed is not None else self.flushed_estimate
        headroom = self.headroom
        return (
            self.nonfinites or 0,
            self.saturated or 0.0,
            flushed or 0.0,
            -math.inf if headroom is None else -headroom,
        )


def figures(rows: Rows, slots: Mapping[str, SlotInfo]) -> Iterator[Figures]:
    """Yields the figures of every row; only those amax allows where `rows.full` is False."""
    if rows.full:
        for row in rows:
            yield _full_figures(row, slots.get(row.slot))
        return
    amaxes = rows.reals[:, AMAX].tolist()
    scales = rows.loss_scales.tolist()
    for slot, amax, scale, cast in zip(rows.slots, amaxes, scales, rows.casts, strict=True):
        yield Figures(slot, amax, scale, limits=_limits(slots.get(slot), cast))


def _full_figures(row: Row, info: SlotInfo | None) -> Figures:
    stats = row.stats
    flushed = flushed_estimate = saturated = None
    if row.cast is not None:
        flushed = row.cast.flushed / max(stats.nonzeros, 1)
        saturated = row.cast.saturated / max(stats.nonzeros, 1)
    elif (fmt := judged_format(info)) is not None:
        if not stored_in(info, fmt):
            flushed = stats.flushed(fmt).value
        elif stats.nonzeros:
            # Of nothing but zeros no tail is left to infer from: unknown, perhaps all of it.
            flushed_estimate = estimate_flushed(stats, fmt).value
        saturated = stats.saturated(fmt).value
    return Figures(
        row.slot,
        stats.amax,
        row.loss_scale,
        _limits(info, row.cast),
        flushed,
        flushed_estimate,
        saturated,
        stats.nonfinites,
    )


def _limits(info: SlotInfo | None, cast: Cast | None) -> tuple[float, float] | None:
    fmt, scale = judged_format(info), 1.0
    if cast is not None:
        fmt, scale = known_format(cast.format), cast.scale
    if fmt is None or not (math.isfinite(scale) and scale > 0):
        return None
    shift = math.log2(scale)
    return math.log2(fmt.smallest_normal) - shift, math.log2(fmt.max) - shift
