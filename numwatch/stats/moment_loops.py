"""The CPU loop over second moments: all that `stats.moments` asks of an element, in one pass."""

from typing import Any

import numpy as np

from numwatch.stats.jit import jit, jit_sum

_CHUNK = 1024


@jit
def sweep_moments(v: Any, gradient: Any, eps: Any, correction: Any, figures: Any) -> None:
    """Fills in each parameter's figures; see `stats.moments.second_moment_figures`.

    Args:
        v: float32 [k, n], n > 0.
        gradient: float32 [k, n].
        eps: float64 [k].
        correction: float64 [k].
        figures: float64 [k, 5], zeros.
    """
    for i in range(v.shape[0]):
        eps_squared = eps[i] * eps[i]
        ratios = np.empty(_CHUNK)
        for start in range(0, v.shape[1], _CHUNK):
            part, g = v[i, start : start + _CHUNK], gradient[i, start : start + _CHUNK]
            _count(part, g, eps_squared, correction[i], ratios, figures[i])
            figures[i, 4] += _sum(ratios, part.size)
        figures[i, 4] /= v.shape[1]


@jit
def _count(
    v: Any, gradient: Any, eps_squared: Any, correction: Any, ratios: Any, figures: Any
) -> None:
    zero = np.float32(0.0)
    touched = below = with_gradient = vanished = np.int64(0)
    for j in range(v.size):
        g, is_zero = gradient[j], v[j] == zero
        # NaN and inf less themselves are NaN.
        has_gradient = (g - g == zero) & (g != zero)
        is_touched = has_gradient | (v[j] != zero)
        corrected = np.float64(v[j]) / correction
        is_below = corrected < eps_squared
        wide = np.float64(g)
        ratios[j] = wide * wide / (eps_squared if is_below else corrected)
        touched += np.int64(is_touched)
        below += np.int64(is_touched & is_below)
        with_gradient += np.int64(has_gradient)
        vanished += np.int64(has_gradient & is_zero)
    figures[0] += touched
    figures[1] += below
    figures[2] += with_gradient
    figures[3] += vanished


@jit_sum
def _sum(x: Any, n: Any) -> Any:
    total = 0.0
    for j in range(n):
        total += x[j]
    return total
