"""The rule by which `torch.amp.GradScaler` moves its loss scale."""

import math

import numpy as np

_NEVER_ZERO = 0.5
"""Above this factor FP32's smallest value, 2^-149, rounds back to itself and stays."""


def next_loss_scale(
    scale: float,
    tracker: int,
    found_inf: bool,
    *,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
) -> tuple[float, int]:
    """Returns the loss scale and growth tracker after one `GradScaler.update`.

    A step with a non-finite gradient multiplies the scale by the backoff factor, without a floor;
    the last of `growth_interval` steps in a row without one multiplies it by the growth factor,
    unless that would leave FP32. The scale is held in FP32.

    Args:
        scale: The scale in force during the step, an FP32 value.
        tracker: Steps in a row without a non-finite gradient before this one.
        found_inf: Whether the step had one.
        growth_factor: As GradScaler takes it, > 1.
        backoff_factor: As GradScaler takes it, < 1.
        growth_interval: As GradScaler takes it.
    """
    if found_inf:
        return _fp32(scale * backoff_factor), 0
    tracker += 1
    if tracker != growth_interval:
        return scale, tracker
    grown = _fp32(scale * growth_factor)
    return (grown if math.isfinite(grown) else scale), 0


def skips_to_zero(scale: float, backoff: float = 0.5) -> int | None:
    """Returns how many more skipped steps take the loss scale to exactly 0.0.

    Args:
        scale: The scale now; 166 skips away from 0.0 at GradScaler's initial 65536.
        backoff: Its factor at each skip.

    Returns:
        The number, 0 where the scale is 0.0; None where it never gets there: a factor above 0.5
        leaves the scale in FP32's subnormals for ever.
    """
    if scale == 0.0:
        return 0
    if not (math.isfinite(scale) and 0.0 <= backoff <= _NEVER_ZERO):
        return None
    skips = 0
    while scale:
        scale, _ = next_loss_scale(scale, 0, found_inf=True, backoff_factor=backoff)
        skips += 1
    return skips


def _fp32(x: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(x))
