"""How the scale of one whole tensor is chosen, step by step, from its amax.

All arithmetic is FP32, as the libraries keep scales. What was recorded is gone through in NumPy,
`over` all of it at once; `step` is of tensors, see `numwatch.recipes.stepping`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS
from numwatch.recipes.sliding import window_maxima

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from numwatch.formats import Format

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

State = Mapping[str, "Tensor"]
"""What a rule remembers between steps, by name: small tensors, fit for a checkpoint."""
Algorithm = Literal["max", "most_recent"] | Callable[["Tensor"], "Tensor"]

FP32_MAX, _SMALLEST = FORMATS["fp32"].max, FORMATS["fp32"].smallest_subnormal
CURRENT_EPS = 1e-12
"""Amaxes below it count as it: torchao's `EPS`."""
FP32_EXPONENT = 0x7F800000
"""The bits of the exponent field."""
_LONGEST_HISTORY = 1 << 20
"""Steps; each takes four bytes a tensor."""
_WIDEST_MARGIN = 16
"""More would take a large amax's scale out of FP32; E4M3 has 18 binades in all."""


class TensorScaling(Protocol):
    """A rule that gives a whole tensor one scale: it is stored as Q(x * scale)."""

    name: ClassVar[str]

    def start(self, like: Tensor) -> State:
        """Returns what is remembered before the first step, for amaxes of this shape."""

    def step(self, state: State, amax: Tensor, fmt: Format) -> tuple[Tensor, State]:
        """Returns the scale in force for the tensor at hand, and what to remember.

        Args:
            state: From `start` or the step before; not changed.
            amax: Largest magnitude of the tensor about to be cast, FP32; may be inf or NaN.
            fmt: The format it is cast to.
        """

    def over(self, amaxes: Floats, fmt: Format, runs: Ints | None = None) -> Floats:
        """Returns the scale in force at each of one tensor's casts, as `step` by `step`, and fast.

        Args:
            amaxes: FP32 [n], in the order of the casts.
            fmt: The format cast to.
            runs: Int64 [n], rising: which of all the tensor's casts each amax is of, where some
                were not seen. By default all were.

        Returns:
            FP32 [n].
        """


@dataclass(frozen=True)
class StaticScaling:
    """One scale for the whole run.

    Attributes:
        scale: Positive and finite.
    """

    name: ClassVar[str] = "static"
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what is no scale."""
        if not _SMALLEST <= self.scale <= FP32_MAX:
            raise NumwatchError(f"a static scale is positive and finite; got {self.scale!r}")

    def start(self, like: Tensor) -> State:  # noqa: ARG002  # it remembers nothing
        """Remembers nothing."""
        return {}

    def step(self, state: State, amax: Tensor, fmt: Format) -> tuple[Tensor, State]:  # noqa: ARG002
        """Returns the scale."""
        from numwatch.recipes.stepping import static_scale

        return static_scale(self, amax), state

    def over(self, amaxes: Floats, fmt: Format, runs: Ints | None = None) -> Floats:  # noqa: ARG002
        """Returns the scale, at each cast."""
        return np.full_like(amaxes, self.scale)


@dataclass(frozen=True)
class CurrentScaling:
    """The scale that takes the tensor's own amax to the format's largest value.

    scale = max / max(amax, 1e-12), in FP64 and then rounded to FP32 as torchao does; 1 where the
    amax is 0, infinite or NaN (Transformer Engine's rule for `Float8CurrentScaling`).

    Attributes:
        power_of_two: Round the scale down to a power of two, which makes the scaling itself exact.
    """

    name: ClassVar[str] = "current"
    power_of_two: bool = False

    def start(self, like: Tensor) -> State:  # noqa: ARG002  # it remembers nothing
        """Remembers nothing."""
        return {}

    def step(self, state: State, amax: Tensor, fmt: Format) -> tuple[Tensor, State]:
        """Returns the scale of this tensor."""
        from numwatch.recipes.stepping import current_scale

        return current_scale(self, amax, fmt), state

    def over(self, amaxes: Floats, fmt: Format, runs: Ints | None = None) -> Floats:  # noqa: ARG002
        """Returns each tensor's scale; none depends on another's."""
        wide = amaxes.astype(np.float64)
        with np.errstate(over="ignore"):
            scales = (fmt.max / np.maximum(wide, CURRENT_EPS)).astype(np.float32)
        if self.power_of_two:  # none is below FP32's smallest normal value
            scales = (scales.view(np.int32) & FP32_EXPONENT).view(np.float32)
        return np.where((wide > 0) & np.isfinite(wide), scales, np.float32(1.0))


@dataclass(frozen=True)
class DelayedScaling:
    """Transformer Engine's `DelayedScaling`: the scale of a step comes from the steps before it.

    Slot 0 of the history takes the current amax; an amax is chosen (over all slots, or slot 0), the
    history rolls, and scale = (max / 2^margin) / amax holds from the next step on. The first step's
    scale is 1. A chosen amax that is 0, infinite or NaN keeps the scale; a scale beyond FP32
    becomes its largest value. `max` passes over NaN, as `fmaxf` does, and stands still for an inf
    until it has left the history. An amax of 0 is that of a module that did not run: nothing rolls.
    A function of one's own, which Transformer Engine calls outside its fused kernel, sees such
    zeros.

    Sources: Transformer Engine's `recipe.DelayedScaling`, `kernel_bulk` of `delayed_scaling.cu`
    and `_amax_and_scale_update`.

    Attributes:
        history: Steps looked back on, the current one included; 1 to 1048576.
        margin: Bits kept free above the amax; 0 to 16.
        algorithm: `max` over the history, `most_recent`, or a function of it, [H, ...] to [...].
    """

    name: ClassVar[str] = "delayed"
    history: int = 1024
    margin: int = 0
    algorithm: Algorithm = "max"

    def __post_init__(self) -> None:
        """Refuses a history or a margin out of range, and an unknown algorithm."""
        if not 1 <= self.history <= _LONGEST_HISTORY:
            raise NumwatchError(
                f"delayed scaling needs a history of 1 to {_LONGEST_HISTORY}; got {self.history}"
            )
        if not 0 <= self.margin <= _WIDEST_MARGIN:
            raise NumwatchError(
                f"delayed scaling's margin is 0 to {_WIDEST_MARGIN} bits; got {self.margin}"
            )
        if not callable(self.algorithm) and self.algorithm not in ("max", "most_recent"):
            raise NumwatchError(
                f"delayed scaling's algorithm is max, most_recent or a function of the history; "
                f"got {self.algorithm!r}"
            )

    def start(self, like: Tensor) -> State:
        """Remembers an empty history and the scale 1."""
        from numwatch.recipes.stepping import delayed_start

        return delayed_start(self, like)

    def step(self, state: State, amax: Tensor, fmt: Format) -> tuple[Tensor, State]:
        """Returns the scale that the steps before this one left."""
        from numwatch.recipes.stepping import delayed_step

        return delayed_step(self, state, amax, fmt)

    def over(self, amaxes: Floats, fmt: Format, runs: Ints | None = None) -> Floats:
        """Returns the scale at each cast; of a history with gaps an estimate.

        An amax stays in the history for `history` runs, seen or not. Where all runs that the
        history reaches back to were unseen, the last one seen stands for them. A run is one that
        rolls: whatever was not seen counts as such. For a function of one's own, which takes a
        history without holes, unseen runs are as if they had not been.
        """
        if callable(self.algorithm):
            from numwatch.recipes.stepping import stepped

            return stepped(self, amaxes, fmt)
        ran, rolls, seen = _rolls(amaxes, runs)
        if self.algorithm == "max":
            first = np.searchsorted(rolls[ran], rolls - self.history)
            chosen = window_maxima(amaxes[ran], np.minimum(first, np.maximum(seen - 1, 0)), seen)
        else:
            chosen = np.concatenate([np.zeros(1, np.float32), amaxes[ran]])[seen]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scales = np.minimum(np.float32(self.largest(fmt)) / chosen, np.float32(FP32_MAX))
        # What is not usable keeps the scale before it, which is the last usable one's.
        usable = (chosen > 0) & np.isfinite(chosen)
        last = np.maximum.accumulate(np.where(usable, np.arange(len(amaxes)), -1))
        kept: Floats = np.where(last >= 0, scales[last], np.float32(1.0))
        return kept

    def coverage(self, amaxes: Floats, runs: Ints | None = None) -> tuple[Ints, Ints]:
        """Returns how many amaxes the history before each cast holds, and how many were seen.

        Where the two differ the scale of `over` is an estimate. Of `most_recent` only the last
        amax counts.

        Returns:
            Seen and held, int64 [n] each.
        """
        ran, rolls, seen = _rolls(amaxes, runs)
        reach = 1 if self.algorithm == "most_recent" else self.history
        first = np.searchsorted(rolls[ran], rolls - reach)
        return np.maximum(seen - first, 0), np.minimum(rolls, reach)

    def largest(self, fmt: Format) -> float:
        """Returns what the chosen amax is taken to."""
        return fmt.max * 2.0**-self.margin


def _rolls(amaxes: Floats, runs: Ints | None) -> tuple[npt.NDArray[np.bool_], Ints, Ints]:
    """Whether each amax rolls, how many did so before it, and how many of those were seen."""
    ran = amaxes != 0
    count = np.arange(len(amaxes)) if runs is None else runs
    return ran, count - (np.cumsum(~ran) - ~ran), np.cumsum(ran) - ran
