"""What is said of a slot, be it over one step or over many: one job for all reports."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numwatch.formats import Format
from numwatch.record.slot_formats import is_block_format, judged_format, known_format, stored_in
from numwatch.record.totals import CastTotals, SlotTotals
from numwatch.report.verdict import VERDICTS, share_of, verdict_of
from numwatch.snapshot import GRADIENT_ROLES, ROLES, SlotInfo, role_of
from numwatch.stats import Bounded, TensorStats, estimate_flushed
from numwatch.tensor_rows import Cast, Rows

# Below a thousandth flushed nothing is lost that a ranking should be about.
_NEGLIGIBLE_FLUSHED = 0.001


@dataclass(frozen=True)
class SlotFigures:
    """A slot's figures; None means not measured, not known or not defined, never zero.

    Shares but `zero_share` are over the finite non-zero elements, and not defined without any.

    Attributes:
        format: Name of the format they are about.
        scaled: Whether the tensors carry a loss scale, and so all figures but `amax_unscaled`.
        amax: Largest finite magnitude; 0 where no element is finite and non-zero.
        amax_unscaled: The same with the loss scale divided out; 0 where that is not above 0.
        zero_share: Share of zeros among all elements, in full rows.
        flushed: Share that the format turns into zero.
        flushed_from: "counts" from the histogram, "estimate" of what had gone before the tensor
            was seen, "cast" as the library's own scaled cast did it, "shadow" as a shadow step
            measured it, in a sample and over its steps; None where `flushed` is.
        subnormal: Share in the format's subnormals.
        saturated: Share above the format's largest value.
        nans: NaN elements.
        infs: Infinite elements.
        limits: log2 of the format's smallest normal and of its largest value, both divided by the
            scale of the slot's cast: directly comparable with log2 of `amax`.
        headroom: Bits between amax and the format's largest value, negative once it saturates.
        verdict: One of `VERDICTS`.
    """

    slot: str
    format: str | None
    scaled: bool
    amax: float
    amax_unscaled: float
    zero_share: float | None
    flushed: Bounded | None
    flushed_from: str | None
    subnormal: Bounded | None
    saturated: Bounded | None
    nans: int
    infs: int
    limits: tuple[float, float] | None
    headroom: float | None
    verdict: str

    @property
    def nonfinites(self) -> int:
        """NaN and infinite elements."""
        return self.nans + self.infs

    @property
    def badness(self) -> tuple[float, ...]:
        """Sort key: the worst slot has the largest."""
        flushed = share_of(self.flushed)
        return (
            -VERDICTS.index(self.verdict),
            self.nonfinites,
            share_of(self.saturated),
            flushed if flushed >= _NEGLIGIBLE_FLUSHED else 0.0,
            share_of(self.subnormal),
            -math.inf if self.headroom is None else -self.headroom,
        )


def slot_figures(
    slot: str,
    info: SlotInfo | None,
    *,
    amax: float,
    amax_unscaled: float,
    scaled: bool,
    nans: int,
    infs: int,
    finite_seen: bool,
    stats: TensorStats | None,
    cast: CastTotals | None,
    shadow: Bounded | None = None,
) -> SlotFigures:
    """Returns the figures of a slot.

    Args:
        slot: Its name.
        info: What else is known of it; decides which format the figures are about.
        amax: Largest finite magnitude, which may come from more steps than `stats`.
        amax_unscaled: The same with the loss scale divided out.
        scaled: Whether the numbers are multiplied by a loss scale.
        nans: NaN elements, likewise.
        infs: Infinite elements, likewise.
        finite_seen: Whether there was any finite element.
        stats: All else that was seen in full rows; None where there is none.
        cast: What a library's own cast did to the tensors, or None.
        shadow: The flushed share that a shadow step measured; holds in place of one that is not
            the cast's.
    """
    fmt = known_format(cast.format) if cast else judged_format(info)
    flushed = subnormal = saturated = source = None
    if cast is not None and cast.nonzeros:
        source = "cast"
        flushed = Bounded.exactly(cast.flushed / cast.nonzeros)
        saturated = Bounded.exactly(cast.saturated / cast.nonzeros)
    elif cast is None and fmt is not None and stats is not None and stats.nonzeros:
        source = "estimate" if stored_in(info, fmt) else "counts"
        flushed = estimate_flushed(stats, fmt) if source == "estimate" else stats.flushed(fmt)
        subnormal, saturated = stats.subnormal(fmt), stats.saturated(fmt)
    if cast is None and shadow is not None:
        source, flushed = "shadow", shadow
    limits = _limits(fmt, amax, cast)
    headroom = limits[1] - math.log2(amax) if limits and 0 < amax < math.inf else None
    is_gradient = role_of(slot) in GRADIENT_ROLES
    # Blocks clip and flush by rule: shares that would be trouble under one scale are none there.
    by_rule = cast is not None and is_block_format(cast.format)
    return SlotFigures(
        slot=slot,
        format=cast.format if cast else info.format if info else None,
        scaled=scaled,
        amax=amax,
        amax_unscaled=amax_unscaled,
        zero_share=stats.zero_share if stats and stats.numel else None,
        flushed=flushed,
        flushed_from=source,
        subnormal=subnormal,
        saturated=saturated,
        nans=nans,
        infs=infs,
        limits=limits,
        headroom=headroom,
        verdict=verdict_of(
            nonfinites=nans + infs,
            zero_gradient=is_gradient and finite_seen and amax == 0,
            finite_seen=finite_seen,
            flushed=None if by_rule else flushed,
            subnormal=subnormal,
            saturated=None if by_rule else saturated,
            headroom=headroom,
            scaled_to_fit=cast is not None,
        ),
    )


def totals_figures(
    totals: SlotTotals,
    info: SlotInfo | None,
    *,
    scaled: bool,
    finite_seen: bool,
    shadow: Bounded | None = None,
) -> SlotFigures:
    """Returns the figures of a slot over many steps; see `slot_figures`."""
    return slot_figures(
        totals.slot,
        info,
        amax=totals.amax,
        amax_unscaled=totals.amax_unscaled,
        scaled=scaled,
        nans=totals.nans,
        infs=totals.posinfs + totals.neginfs,
        finite_seen=finite_seen,
        stats=totals.stats if totals.full_rows else None,
        cast=totals.cast,
        shadow=shadow,
    )


def rows_figures(rows: Rows, slots: Mapping[str, SlotInfo]) -> Iterator[SlotFigures]:
    """Yields the figures of every module's row; where not `rows.full` only those amax allows."""
    for row in rows:
        if role_of(row.slot) not in ROLES:
            continue
        amax, scale, seen = row.stats.amax, row.loss_scale, row.stats
        stats = seen if rows.full else None
        yield slot_figures(
            row.slot,
            slots.get(row.slot),
            amax=amax,
            amax_unscaled=amax / scale if scale > 0 else 0.0,
            scaled=scale != 1.0,
            nans=seen.nans,
            infs=seen.posinfs + seen.neginfs,
            finite_seen=seen.numel > seen.nonfinites,
            stats=stats,
            cast=None if row.cast is None else _cast_totals(row.cast, amax, stats),
        )


def _cast_totals(cast: Cast, amax: float, stats: TensorStats | None) -> CastTotals:
    nonzeros = stats.nonzeros if stats else 0
    return CastTotals(cast.format, cast.flushed, cast.saturated, nonzeros, amax * cast.scale)


def _limits(fmt: Format | None, amax: float, cast: CastTotals | None) -> tuple[float, float] | None:
    scale = 1.0
    if cast is not None:
        scale = cast.peak / amax if amax > 0 else math.nan
    if fmt is None or not 0 < scale < math.inf:
        return None
    shift = math.log2(scale)
    return math.log2(fmt.smallest_normal) - shift, math.log2(fmt.max) - shift


def log2_or_none(value: float | None) -> float | None:
    """Returns log2 of what is above 0 and finite."""
    return math.log2(value) if value is not None and 0 < value < math.inf else None
