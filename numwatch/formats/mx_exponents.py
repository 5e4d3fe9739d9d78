"""The exponent of an MX block's scale, for NumPy; `mx_scale_exponent` is the same for tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from numwatch.formats.modes import RoundingError, ScaleRule

if TYPE_CHECKING:
    from numwatch.formats.types import Format

E8M0_EXPONENT_MAX = 127
E8M0_NAN = 128


def mx_exponents(
    amaxes: npt.NDArray[np.float64], element: Format, rule: ScaleRule
) -> npt.NDArray[np.int32]:
    """Returns the exponent of each block's scale, as `mx_scale_exponent` does.

    Args:
        amaxes: Largest magnitudes of blocks, float64 of any shape.
        element: Format of the elements.
        rule: How the exponent is chosen.

    Raises:
        RoundingError: There is no such rule.
    """
    mantissas, exponents = np.frexp(np.minimum(amaxes, clip_at(rule)))
    exponents = exponent_by_rule(mantissas, exponents, element, rule)
    exponents = np.clip(exponents, -E8M0_EXPONENT_MAX, E8M0_EXPONENT_MAX)
    exponents = np.where(amaxes == 0, -E8M0_EXPONENT_MAX, exponents)
    return np.where(np.isnan(amaxes), E8M0_NAN, exponents).astype(np.int32)


def clip_at(rule: ScaleRule) -> float:
    """Returns what amaxes are clipped at: an infinite one counts as 2^128, or as larger than any.

    The latter under `rceil`.
    """
    return 2.0**1000 if rule == "rceil" else 2.0**128


def exponent_by_rule(mantissa: Any, exponent: Any, element: Format, rule: ScaleRule) -> Any:
    """Returns the exponents that a rule chooses, before they are clamped to E8M0.

    Args:
        mantissa: Of the amaxes, in [0.5, 1) as `frexp` has them: half of those in the formulas. An
            array or a tensor.
        exponent: Likewise.
        element: Format of the elements.
        rule: The rule.

    Raises:
        RoundingError: There is no such rule.
    """
    if rule == "floor":
        return exponent - 1 - element.emax
    if rule == "ceil":
        return exponent - 1 + (mantissa > 0.5) - element.emax  # noqa: PLR2004
    if rule == "even":
        precision = element.mantissa_bits + min(element.emax - element.emin, 0)
        return exponent - 1 + (mantissa >= 1 - 2.0 ** -(precision + 2)) - element.emax
    if rule == "rceil":
        largest_mantissa, largest_exponent = math.frexp(element.max)
        return exponent - largest_exponent + (mantissa > largest_mantissa)
    raise RoundingError(f"scale_rule is one of {', '.join(get_args(ScaleRule))}, got {rule!r}")
