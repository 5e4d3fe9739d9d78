"""What storing weights in a narrow format does to the updates they are given.

With w the weight in the storage format, D the intended update and round the storage's rounding to
nearest even, D' = round(w + D) - w is what arrives. Where D' = 0 the update is swallowed. The sum
is taken in FP32 and rounded once, as `w.add_(D)` does on a BF16 or FP16 tensor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS, get_format
from numwatch.stats.compiled import has_loops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numwatch.formats import Format
    from numwatch.stats.tensor_stats import AnyFormat

FIGURES = (
    "nonzero",
    "swallowed",
    "stochastic_kept",
    "deferred",
    "delta_dot",
    "delta_sq",
    "applied_sq",
    "weight_sq",
)
"""Columns of what `swallowing` returns."""

_SCALED_BITS = 8
"""Formats of so many bits or fewer have too little range to hold weights without a scale."""
_EXPONENT_MASK = 0x7F800000
_FP32_MAX = torch.finfo(torch.float32).max


class UpdateShares(TypedDict):
    """The figures of one parameter as shares: fields of `numwatch.step_entries.Update`."""

    nonzero: int
    ratio: float | None
    swallowed: float | None
    stochastic_kept: float | None
    deferred: float | None
    edq: float | None
    edq_normalised: float | None


def swallowing(
    before: Tensor, intended: Tensor, storage: AnyFormat, applied: Tensor | None = None
) -> Tensor:
    """Returns counts and sums over each parameter's sampled updates, waiting for no device.

    Without `applied` the question is what would happen: w = round(before), D' = round(w + D) - w.
    Formats of up to 8 bits are taken at the scale that puts the row's amax at their largest value
    (1 where that is 0); sums are in the weights' own unit all the same. What exceeds the largest
    value saturates. With `applied` the weights really are in the format, at no scale, and D' is
    what arrived.

    Elements whose weight, intended or applied update is not finite are left out of everything.

    Args:
        before: FP32 [k, n], the weights before the step: k parameters, n elements of each.
        intended: FP32 [k, n], D.
        storage: A signed floating-point format with subnormals.
        applied: FP32 [k, n], the weights after the step less `before`.

    Returns:
        FP64 [k, len(FIGURES)] on the device of `before`:
        - nonzero: updates with D != 0. All counts below are of these.
        - swallowed: those with D' = 0.
        - stochastic_kept: over the swallowed, the sum of the probability that stochastic rounding
          of w + D would have moved the weight: |w + D - w| over the distance from w to its
          neighbour on that side, at most 1.
        - deferred: those with round(before + D) = round(before), the copy of an FP32 weight that
          does not move; NaN with `applied`.
        - delta_dot, delta_sq: <D', D> and |D|^2.
        - applied_sq: |applied|^2, or |D|^2 without it, since FP32 weights take D whole.
        - weight_sq: |before|^2.

    Raises:
        NumwatchError: Weights can't be stored in such a format.
    """
    fmt = _checked(storage)
    before, intended = before.detach(), intended.detach()
    scale = None
    if applied is None and fmt.bits <= _SCALED_BITS:
        scale = _scale(before, fmt)
    if applied is not None:
        applied = applied.detach()
    implementation = by_loops if before.is_cpu and has_loops() else by_operations
    return implementation(before, intended, fmt, scale, applied)


def shares_of_updates(figures: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[Any]]:
    """Returns rows [k, len(FIGURES)] of `swallowing`, now on the host, as shares [k] by name.

    Names are the fields of `UpdateShares`. NaN is "not defined": shares are over the non-zero
    updates, so where there is none. EDQ is <D', D> / |D|, in the weights' unit, and normalised
    <D', D> / |D|^2, 1 where everything arrives (Collage, Yu et al. 2024). The ratio is
    |applied| / |before|, not defined where the weights are all zero.
    """
    row = dict(zip(FIGURES, np.asarray(figures, np.float64).T, strict=True))
    none = np.full(len(figures), np.nan)

    def over(part: Any, whole: Any) -> Any:
        return np.divide(part, whole, out=none.copy(), where=whole > 0)

    count, delta_sq, weight_sq = row["nonzero"], row["delta_sq"], row["weight_sq"]
    some = np.where(count > 0, delta_sq, 0.0)
    return {
        "nonzero": count.astype(np.int64),
        "ratio": np.sqrt(over(row["applied_sq"], weight_sq)),
        "swallowed": over(row["swallowed"], count),
        "stochastic_kept": over(row["stochastic_kept"], count),
        "deferred": over(row["deferred"], count),
        "edq": over(row["delta_dot"], np.sqrt(some)),
        "edq_normalised": over(row["delta_dot"], some),
    }


def update_shares(figures: Sequence[float]) -> UpdateShares:
    """Returns one row of `swallowing` as shares, None where not defined; see above."""
    shares = shares_of_updates(np.array([figures]))
    found = {name: column.tolist()[0] for name, column in shares.items()}
    defined = {name: None if math.isnan(value) else value for name, value in found.items()}
    return cast("UpdateShares", defined)


def _checked(storage: AnyFormat) -> Format:
    fmt = get_format(storage)
    if not _stores_weights(fmt):
        allowed = ", ".join(name for name, one in FORMATS.items() if _stores_weights(one))
        raise NumwatchError(
            f"updates are judged for a format that weights can be stored in: {allowed}; "
            f"got {fmt.name}"
        )
    return fmt


def _stores_weights(fmt: Format) -> bool:
    return fmt.signed and fmt.has_subnormals and not fmt.is_integer


def _scale(before: Tensor, fmt: Format) -> Tensor:
    """The scale [k, 1] that puts each row's amax at the format's largest value."""
    if not before.shape[1]:
        return before.new_ones(len(before), 1)
    amax = torch.nan_to_num(before, 0.0, 0.0, 0.0).abs().amax(dim=1, keepdim=True)
    # A quotient: of a number and a tensor torch makes a product with the reciprocal.
    scale = torch.full_like(amax, fmt.max) / amax
    return torch.where(amax == 0, 1.0, scale.clamp(max=_FP32_MAX))


def by_loops(
    before: Tensor, intended: Tensor, fmt: Format, scale: Tensor | None, applied: Tensor | None
) -> Tensor:
    """Does what `swallowing` tells on a CPU."""
    from numwatch.stats.update_loops import sweep_updates  # numba, which no reader of records needs

    figures = torch.zeros(len(before), len(FIGURES), dtype=torch.float64, device="cpu")
    nothing = before.new_zeros(len(before), 0)
    scales = before.new_ones(len(before)) if scale is None else scale[:, 0].contiguous()
    sweep_updates(
        before.contiguous().numpy(),
        intended.contiguous().numpy(),
        (nothing if applied is None else applied.contiguous()).numpy(),
        scales.numpy(),
        fmt.mantissa_bits,
        fmt.smallest_normal,
        fmt.max,
        figures.numpy(),
    )
    if applied is None:
        figures[:, FIGURES.index("delta_dot")] /= scales
        figures[:, FIGURES.index("applied_sq")] = figures[:, FIGURES.index("delta_sq")]
    else:
        figures[:, FIGURES.index("deferred")] = math.nan
    return figures


def by_operations(
    before: Tensor, intended: Tensor, fmt: Format, scale: Tensor | None, applied: Tensor | None
) -> Tensor:
    """Does the same on any device, in torch's operations."""
    # 0 where all are finite, else NaN; what is left out becomes 0, and such updates count nowhere.
    left_out = (before - before) + (intended - intended)
    if applied is not None:
        left_out += applied - applied
        applied = torch.nan_to_num(applied + left_out)
    weight, delta = torch.nan_to_num(before + left_out), torch.nan_to_num(intended + left_out)
    updated = delta != 0
    low = _round(_times(weight, scale), fmt)
    target = low + _times(delta, scale)
    arrived = _round(target, fmt) - low if applied is None else applied
    swallowed = updated & (arrived == 0)
    kept = _chance_to_move(low, target.clamp(-fmt.max, fmt.max), fmt) * swallowed
    arrived, delta64, weight64 = arrived.double(), delta.double(), weight.double()
    delta_sq = (delta64 * delta64).sum(1)
    delta_dot = (arrived * delta64).sum(1)
    if applied is None:
        deferred = (updated & (_round(_times(weight + delta, scale), fmt) == low)).sum(1)
        applied_sq = delta_sq
    else:
        deferred = torch.full_like(delta_sq, math.nan)
        applied_sq = (arrived * arrived).sum(1)
    return torch.stack(
        [
            updated.sum(1),
            swallowed.sum(1),
            kept.sum(1, dtype=torch.float64),
            deferred,
            delta_dot if scale is None else delta_dot / scale[:, 0],
            delta_sq,
            applied_sq,
            (weight64 * weight64).sum(1),
        ],
        dim=1,
    )


def _times(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def _round(x: Tensor, fmt: Format) -> Tensor:
    """Returns FP32 x on the grid of `fmt`, saturated."""
    x = x.clamp(-fmt.max, fmt.max)
    if fmt.bits > _SCALED_BITS and fmt.torch_dtype is not None:
        return x.to(fmt.torch_dtype).float()
    # Added to this, x keeps no bit below the format's last: faster than a cast to 8 bits and back.
    shift = _binade(x).clamp(min=fmt.smallest_normal) * (1.5 * 2.0 ** (23 - fmt.mantissa_bits))
    return (x + shift) - shift


def _chance_to_move(low: Tensor, target: Tensor, fmt: Format) -> Tensor:
    """Returns the probability that stochastic rounding takes `target` to another value than `low`.

    The neighbour of `low` on the side of `target` is a step away that belongs to the lower one of
    their two binades.
    """
    lower = torch.minimum(_binade(low), _binade(target)).clamp(min=fmt.smallest_normal)
    distance = (target - low).abs() * 2.0**fmt.mantissa_bits
    return (distance / lower).clamp(max=1.0)


def _binade(x: Tensor) -> Tensor:
    """Returns 2^floor(log2 |x|) of FP32 x; 0.0 of its subnormals."""
    return (x.view(torch.int32) & _EXPONENT_MASK).view(torch.float32)
