"""One slot's figures and the word for them: overflow, underflow, tight or ok."""

import math
from dataclasses import dataclass

from numwatch.formats import Format
from numwatch.record.totals import CastTotals, SlotTotals
from numwatch.report.slot_formats import judged_format, known_format, stored_in
from numwatch.snapshot import SlotInfo
from numwatch.stats import Bounded, TensorStats, estimate_flushed

VERDICTS = ("overflow", "underflow", "tight", "ok")
"""From the worst to the best."""
# A hundredth flushed is where loss-scaling papers begin to see a difference in training.
TROUBLING_FLUSHED = 0.01
# Subnormals keep some of their bits, so it takes more of them.
TROUBLING_SUBNORMAL = 0.1
# A cast that saturates clips a single outlier without harm; a plain cast makes it inf.
TROUBLING_CLIPPED = 0.001
# Within one bit a single doubling of the loss scale overflows.
TIGHT_BITS = 1.0


@dataclass(frozen=True)
class SlotFigures:
    """What a summary says of a slot over some steps; None means not measured or not known.

    Shares are over the finite non-zero elements.

    Attributes:
        format: Name of the format they are about.
        scaled: Whether the tensors carry a loss scale, and so all figures but `amax_unscaled`.
        amax: Largest magnitude seen.
        amax_unscaled: The same with the loss scale divided out.
        flushed: Share that the format turns into zero.
        flushed_from: "counts" from the histogram, "estimate" of what had gone before the tensor
            was seen, "cast" as the library's own scaled cast did it, or None.
        subnormal: Share in the format's subnormals.
        saturated: Share above the format's largest value.
        nans: NaN elements; None where only amax was measured.
        infs: Infinite elements, likewise.
        headroom: Bits between amax and the format's largest value.
        verdict: One of `VERDICTS`.
    """

    slot: str
    format: str | None
    scaled: bool
    amax: float
    amax_unscaled: float
    flushed: Bounded | None
    flushed_from: str | None
    subnormal: Bounded | None
    saturated: Bounded | None
    nans: int | None
    infs: int | None
    headroom: float | None
    verdict: str

    @property
    def badness(self) -> tuple[float, ...]:
        """Sort key: the worst slot has the largest."""
        return (
            -VERDICTS.index(self.verdict),
            (self.nans or 0) + (self.infs or 0),
            _share(self.saturated),
            _share(self.flushed),
            _share(self.subnormal),
            -math.inf if self.headroom is None else -self.headroom,
        )


def slot_figures(totals: SlotTotals, info: SlotInfo | None) -> SlotFigures:
    """Returns the figures of a slot and their verdict."""
    stats, cast = totals.stats, totals.cast
    fmt = known_format(cast.format) if cast else judged_format(info)
    name = cast.format if cast else info.format if info else None
    flushed = subnormal = saturated = source = None
    if cast is not None:
        source = "cast"
        flushed = _counted(cast.flushed, cast.nonzeros)
        saturated = _counted(cast.saturated, cast.nonzeros)
    elif fmt is not None and totals.full_rows:
        source = "estimate" if stored_in(info, fmt) else "counts"
        flushed = _flushed(stats, fmt, source)
        subnormal, saturated = stats.subnormal(fmt), stats.saturated(fmt)
    headroom = _headroom(fmt, totals.amax, cast)
    return SlotFigures(
        slot=totals.slot,
        format=name,
        scaled=totals.loss_scale != 1.0,
        amax=totals.amax,
        amax_unscaled=totals.amax_unscaled,
        flushed=flushed,
        flushed_from=source,
        subnormal=subnormal,
        saturated=saturated,
        nans=stats.nans if totals.full_rows else None,
        infs=stats.posinfs + stats.neginfs if totals.full_rows else None,
        headroom=headroom,
        verdict=_verdict(stats, flushed, subnormal, saturated, headroom, scaled_to_fit=bool(cast)),
    )


def _verdict(
    stats: TensorStats,
    flushed: Bounded | None,
    subnormal: Bounded | None,
    saturated: Bounded | None,
    headroom: float | None,
    *,
    scaled_to_fit: bool,
) -> str:
    clipped = TROUBLING_CLIPPED if scaled_to_fit else 0.0
    if stats.nonfinites or _share(saturated) > clipped:
        return "overflow"
    if _share(flushed) >= TROUBLING_FLUSHED or _share(subnormal) >= TROUBLING_SUBNORMAL:
        return "underflow"
    # A scaled cast puts amax at the format's limit on purpose.
    if headroom is not None and headroom < TIGHT_BITS and not scaled_to_fit:
        return "tight"
    return "ok"


def _flushed(stats: TensorStats, fmt: Format, source: str) -> Bounded:
    return estimate_flushed(stats, fmt) if source == "estimate" else stats.flushed(fmt)


def _headroom(fmt: Format | None, amax: float, cast: CastTotals | None) -> float | None:
    peak = cast.peak if cast else amax
    if fmt is None or not 0 < peak < math.inf:
        return None
    return math.log2(fmt.max) - math.log2(peak)


def _counted(count: int, total: int) -> Bounded:
    return Bounded.exactly(count / total if total else 0.0)


def _share(figure: Bounded | None) -> float:
    return 0.0 if figure is None else figure.value
