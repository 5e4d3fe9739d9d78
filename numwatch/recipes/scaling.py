"""How the scale of one whole tensor is chosen, step by step, from its amax.

All arithmetic is FP32, as the libraries keep scales, and on the amax's own device: nothing here
waits for it. An amax may stand for many tensors at once; all rules work element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS

if TYPE_CHECKING:
    from torch import Tensor

    from numwatch.formats import Format

State = Mapping[str, "Tensor"]
"""What a rule remembers between steps, by name: small tensors, fit for a checkpoint."""
Algorithm = Literal["max", "most_recent"] | Callable[["Tensor"], "Tensor"]

_FP32_MAX = FORMATS["fp32"].max
_CURRENT_EPS = 1e-12
"""Amaxes below it count as it: torchao's `EPS`."""


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
        if not 0.0 < self.scale <= _FP32_MAX:
            raise NumwatchError(f"a static scale is positive and finite; got {self.scale!r}")

    def start(self, like: Tensor) -> State:  # noqa: ARG002  # it remembers nothing
        """Remembers nothing."""
        return {}

    def step(self, state: State, amax: Tensor, fmt: Format) -> tuple[Tensor, State]:  # noqa: ARG002
        """Returns the scale."""
        return torch.full_like(amax, self.scale, dtype=torch.float32), state


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
        wide = amax.to(torch.float64)
        scale = (fmt.max / wide.clamp(min=_CURRENT_EPS)).to(torch.float32)
        if self.power_of_two:
            scale = floor_to_power_of_two(scale)
        return torch.where((wide > 0) & wide.isfinite(), scale, 1.0), state


@dataclass(frozen=True)
class DelayedScaling:
    """Transformer Engine's `DelayedScaling`: the scale of a step comes from the steps before it.

    Slot 0 of the history takes the current amax; an amax is chosen (over all slots, or slot 0), the
    history rolls, and scale = max / amax / 2^margin holds from the next step on. The first step's
    scale is 1. A chosen amax that is 0, infinite or NaN keeps the scale; a scale beyond FP32
    becomes its largest value. Sources: Transformer Engine's `recipe.DelayedScaling` and
    `fused_amax_and_scale_update`.

    Attributes:
        history: Steps looked back on, the current one included; >= 1.
        margin: Bits kept free above the amax.
        algorithm: `max` over the history, `most_recent`, or a function of the history [H, ...].
    """

    name: ClassVar[str] = "delayed"
    history: int = 1024
    margin: int = 0
    algorithm: Algorithm = "max"

    def __post_init__(self) -> None:
        """Refuses a history without a step and an unknown algorithm."""
        if self.history < 1:
            raise NumwatchError(f"delayed scaling needs a history of 1 or more; got {self.history}")
        if not callable(self.algorithm) and self.algorithm not in ("max", "most_recent"):
            raise NumwatchError(
                f"delayed scaling's algorithm is max, most_recent or a function of the history; "
                f"got {self.algorithm!r}"
            )

    def start(self, like: Tensor) -> State:
        """Remembers an empty history and the scale 1."""
        return {
            "history": like.new_zeros((self.history, *like.shape), dtype=torch.float32),
            "scale": torch.ones_like(like, dtype=torch.float32),
        }

    def step(self, state: State, amax: Tensor, fmt: Format) -> tuple[Tensor, State]:
        """Returns the scale that the steps before this one left."""
        scale = state["scale"]
        # Slot 0 is the step at hand; slot 1 is the oldest, which the roll lets go of.
        history = torch.cat([amax.to(torch.float32)[None], state["history"][1:]])
        chosen = self._chosen(history)
        # FP32 throughout: this is what fused kernels compute.
        following = (fmt.max / chosen) * 2.0**-self.margin
        following = following.clamp(max=_FP32_MAX)
        usable = (chosen > 0) & chosen.isfinite()
        following = torch.where(usable, following, scale)
        rolled = torch.cat([torch.zeros_like(history[:1]), history[2:], history[:1]])
        return scale, {"history": rolled[: self.history], "scale": following}

    def _chosen(self, history: Tensor) -> Tensor:
        if callable(self.algorithm):
            return self.algorithm(history)
        return history.amax(dim=0) if self.algorithm == "max" else history[0]


def scales_over(recipe: TensorScaling, amaxes: Tensor, fmt: Format) -> Tensor:
    """Returns the scale in force at each step of a history of amaxes.

    Args:
        recipe: The rule.
        amaxes: [steps, ...]; converted to FP32.
        fmt: The format cast to.

    Returns:
        FP32 in the shape of `amaxes`.
    """
    history = amaxes.to(torch.float32)
    if not len(history):
        return history
    state = recipe.start(history[0])
    scales = []
    for amax in history:
        scale, state = recipe.step(state, amax, fmt)
        scales.append(scale)
    return torch.stack(scales)


def floor_to_power_of_two(scale: Tensor) -> Tensor:
    """Returns the largest power of two at or below each positive FP32 scale; inf and NaN stay."""
    mantissa, exponent = torch.frexp(scale)
    return torch.where(
        scale.isfinite(), torch.ldexp(torch.full_like(mantissa, 0.5), exponent), scale
    )
