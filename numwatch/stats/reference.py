"""The readable kernel: plain torch operations, any device, no synchronisation with the host."""

import torch
from torch import Tensor

from numwatch.stats.binades import BINADE_MAX, BINADE_MIN
from numwatch.stats.dtypes import LAYOUTS
from numwatch.stats.layout import (
    AMAX,
    AMIN,
    BINADES,
    CALLS,
    COUNTS,
    NANS,
    NEGINFS,
    NUMEL,
    POSINFS,
    POW2S,
    REALS,
    SUM,
    SUMSQ,
    ZEROS,
)
from numwatch.stats.prepare import dense
from numwatch.stats.repeated import add_repeated
from numwatch.stats.widen import widened

_MAGNITUDE = 0x7FFF_FFFF_FFFF_FFFF
_INF = 0x7FF0_0000_0000_0000
_MANTISSA = 0x000F_FFFF_FFFF_FFFF


def accumulate(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds what x shows to one row of int64 [n, COUNTS] and float64 [n, REALS] on x's device.

    Non-finite elements are counted and enter neither amax nor the sums. Sums are FP64 throughout.

    Raises:
        NotWatchedError: See `prepare.dense`.
    """
    single = add_repeated(accumulate, x, counts, reals, row)
    if single is None:
        return
    flat, left_out = dense(single)
    counts, reals = counts.view(-1, COUNTS)[row], reals.view(-1, REALS)[row]
    counts[NUMEL] += flat.numel() + left_out
    counts[ZEROS] += left_out
    counts[CALLS] += 1
    if not flat.numel():
        return
    values = widened(flat)
    bits = values.view(torch.int64)
    magnitude = bits & _MAGNITUDE
    finite = magnitude < _INF
    nonzero = finite & (magnitude > 0)
    mantissa = magnitude & _MANTISSA
    # A subnormal FP64 value has no leading bit, so that its mantissa alone must be a power of two.
    normal = magnitude > _MANTISSA
    pow2 = torch.where(normal, mantissa == 0, mantissa & (mantissa - 1) == 0)

    binade = ((magnitude >> 52) - 1023).clamp(BINADE_MIN, BINADE_MAX) - BINADE_MIN
    counts[:BINADES].scatter_add_(0, binade, nonzero.long())
    counts[ZEROS] += (magnitude == 0).sum()
    counts[NANS] += (magnitude > _INF).sum()
    counts[POSINFS] += (bits == _INF).sum()
    counts[NEGINFS] += ((magnitude == _INF) & (bits < 0)).sum()
    counts[POW2S] += (nonzero & pow2).sum()

    # Non-negative floats order like their patterns, whatever the processor takes for zero.
    extremes = reals.view(torch.int64)
    extremes[AMAX] = extremes[AMAX].maximum(magnitude.where(finite, 0).amax())
    extremes[AMIN] = extremes[AMIN].minimum(magnitude.where(nonzero, _INF).amin())
    finite_values = values.where(finite, 0.0)
    reals[SUM] += finite_values.sum()
    reals[SUMSQ] += finite_values.square().sum()


def accumulate_amax(x: Tensor, counts: Tensor, reals: Tensor, row: int = 0) -> None:
    """Adds x's finite amax, numel and non-finite counts alone to one row; see `accumulate`."""
    single = add_repeated(accumulate_amax, x, counts, reals, row)
    if single is None:
        return
    flat, left_out = dense(single)
    counts, reals = counts.view(-1, COUNTS)[row], reals.view(-1, REALS)[row]
    counts[NUMEL] += flat.numel() + left_out
    counts[CALLS] += 1
    if not flat.numel():
        return
    layout = LAYOUTS[flat.dtype]
    bits = flat.view(layout.integer)
    magnitude = bits & layout.magnitude_mask
    positive = bits == magnitude
    nan = magnitude > layout.largest
    if layout.has_inf:
        infinite = magnitude == layout.largest + 1
        nan &= ~infinite
        counts[POSINFS] += (infinite & positive).sum()
        counts[NEGINFS] += (infinite & ~positive).sum()
    if layout.negative_zero_is_nan:
        nan |= (magnitude == 0) & ~positive
    counts[NANS] += nan.sum()
    largest = magnitude.where(magnitude <= layout.largest, 0).amax().reshape(1)
    amax = widened(largest.view(flat.dtype))[0]
    reals[AMAX] = torch.maximum(reals[AMAX], amax)
