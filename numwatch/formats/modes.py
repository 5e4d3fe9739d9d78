"""The ways to round and to choose a block's scale, by name."""

from typing import Literal

from numwatch.errors import NumwatchError

Rounding = Literal["nearest", "stochastic"]
"""See `quantize`."""
ScaleRule = Literal["floor", "ceil", "even", "rceil"]
"""See `mx_scale_exponent`."""


class RoundingError(NumwatchError, ValueError):
    """An argument that rounding cannot work with."""
