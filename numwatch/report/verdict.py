"""The word for a slot's figures: overflow, all zero, underflow, tight, unknown or ok."""

from numwatch.stats import Bounded

VERDICTS = ("overflow", "all zero", "underflow", "tight", "unknown", "ok")
"""From the worst to the best."""
TROUBLES = ("overflow", "all zero", "underflow")
"""Those by which training loses something."""
# A hundredth flushed is where loss-scaling papers begin to see a difference in training.
TROUBLING_FLUSHED = 0.01
# Subnormals keep some of their bits: 12 % of them in a healthy activation are no alarm. Once they
# are half of a tensor, the typical element has lost precision.
TROUBLING_SUBNORMAL = 0.5
# A cast that saturates clips a single outlier without harm; a plain cast makes it inf.
TROUBLING_CLIPPED = 0.001
# Within one bit a single doubling of the loss scale overflows.
TIGHT_BITS = 1.0


def verdict_of(
    *,
    nonfinites: int,
    zero_gradient: bool,
    finite_seen: bool,
    flushed: Bounded | None,
    subnormal: Bounded | None,
    saturated: Bounded | None,
    headroom: float | None,
    scaled_to_fit: bool,
) -> str:
    """Returns one of `VERDICTS`; a figure that is None speaks neither for nor against.

    Args:
        nonfinites: Count of NaN and infinite elements.
        zero_gradient: Whether these are gradients and all of them are zero. Whatever is upstream
            of them learns nothing, and no share of their non-zero elements could tell.
        finite_seen: Whether any element is known to be finite.
        flushed: Share of the finite non-zero elements that the format turns into zero.
        subnormal: Share of them in the format's subnormals.
        saturated: Share of them above the format's largest value.
        headroom: Bits between amax and the format's largest value.
        scaled_to_fit: Whether a scaled cast puts amax at the format's limit on purpose.
    """
    if nonfinites or share_of(saturated) > (TROUBLING_CLIPPED if scaled_to_fit else 0.0):
        return "overflow"
    if zero_gradient:
        return "all zero"
    if share_of(flushed) >= TROUBLING_FLUSHED or share_of(subnormal) >= TROUBLING_SUBNORMAL:
        return "underflow"
    if headroom is not None and headroom < TIGHT_BITS and not scaled_to_fit:
        return "tight"
    return "ok" if finite_seen else "unknown"


def share_of(figure: Bounded | None) -> float:
    """Returns the best estimate, 0 where there is none."""
    return 0.0 if figure is None else figure.value
