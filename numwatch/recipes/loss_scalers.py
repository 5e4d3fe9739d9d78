"""Loss scalers as recipes: the loss scale at each step, from what the gradients were."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import numpy as np

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS
from numwatch.recipes.loss_scaling import next_loss_scale

if TYPE_CHECKING:
    import numpy.typing as npt

    from numwatch.formats import Format

    Floats = npt.NDArray[np.float64]
    Bools = npt.NDArray[np.bool_]

_FP32 = FORMATS["fp32"]


class LossState(NamedTuple):
    """What a loss scaler remembers.

    Attributes:
        scale: The scale in force, an FP32 value.
        good: Steps in a row without overflow.
        patience: Overflows until it backs off; of Megatron's scaler alone.
    """

    scale: float
    good: int = 0
    patience: int = 0


class LossScaler(Protocol):
    """A rule that moves a loss scale; a step that overflows is skipped."""

    name: ClassVar[str]

    def start(self) -> LossState:
        """Returns the state of the first step."""

    def step(self, state: LossState, overflow: bool) -> LossState:
        """Returns the state after a step, given whether a gradient was not finite."""


@dataclass(frozen=True)
class StaticLossScale:
    """One loss scale for the whole run; a step that overflows is skipped and changes nothing.

    Attributes:
        scale: Positive and finite.
    """

    name: ClassVar[str] = "static-loss"
    scale: float = 65536.0

    def __post_init__(self) -> None:
        """Refuses what is no scale."""
        _check_scale(self.name, "scale", self.scale)

    def start(self) -> LossState:
        """The scale."""
        return LossState(_fp32(self.scale))

    def step(self, state: LossState, overflow: bool) -> LossState:  # noqa: ARG002
        """Changes nothing."""
        return state


@dataclass(frozen=True)
class GradScalerRecipe:
    """`torch.amp.GradScaler`; see `next_loss_scale`.

    Attributes:
        init_scale: The first step's scale.
        growth_factor: > 1.
        backoff_factor: Between 0 and 1. There is no floor: the scale can fall to 0.
        growth_interval: Steps in a row without overflow before the scale grows.
    """

    name: ClassVar[str] = "grad-scaler"
    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        """Refuses what `GradScaler` would."""
        _check_scale(self.name, "init_scale", self.init_scale)
        _check_factors(self.name, self.growth_factor, self.backoff_factor, self.growth_interval)

    def start(self) -> LossState:
        """The first scale."""
        return LossState(_fp32(self.init_scale))

    def step(self, state: LossState, overflow: bool) -> LossState:
        """As `GradScaler.update`."""
        scale, good = next_loss_scale(
            state.scale,
            state.good,
            overflow,
            growth_factor=self.growth_factor,
            backoff_factor=self.backoff_factor,
            growth_interval=self.growth_interval,
        )
        return LossState(scale, good)


@dataclass(frozen=True)
class MegatronScaler:
    """Megatron-LM's `DynamicGradScaler`, with the defaults of its arguments.

    An overflow takes one off the hysteresis; once none is left every further one backs off, down to
    `min_scale`. Steps without overflow do not give it back: only growth does. Growth has no
    ceiling, so the scale can reach inf, and there it stays.

    Source: Megatron-LM, `megatron/core/optimizer/grad_scaler.py`.

    Attributes:
        initial_scale: The first step's scale, 2^32.
        min_scale: The floor.
        growth_factor: > 1.
        backoff_factor: Between 0 and 1.
        growth_interval: Steps in a row without overflow before the scale grows.
        hysteresis: Overflows before the first backoff, that one included.
    """

    name: ClassVar[str] = "megatron"
    initial_scale: float = 2.0**32
    min_scale: float = 1.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 1000
    hysteresis: int = 2

    def __post_init__(self) -> None:
        """Refuses what Megatron would."""
        _check_scale(self.name, "initial_scale", self.initial_scale)
        _check_scale(self.name, "min_scale", self.min_scale)
        _check_factors(self.name, self.growth_factor, self.backoff_factor, self.growth_interval)
        if self.min_scale > self.initial_scale or self.hysteresis < 1:
            raise NumwatchError(
                f"{self.name} needs min_scale up to initial_scale and hysteresis of 1 or more; got "
                f"{self.min_scale:g}, {self.initial_scale:g} and {self.hysteresis}"
            )

    def start(self) -> LossState:
        """The first scale and the whole hysteresis."""
        return LossState(_fp32(self.initial_scale), 0, self.hysteresis)

    def step(self, state: LossState, overflow: bool) -> LossState:
        """As `DynamicGradScaler.update`, in FP32."""
        if overflow:
            left = state.patience - 1
            fallen = max(_product(state.scale, self.backoff_factor), _fp32(self.min_scale))
            return LossState(state.scale if left > 0 else fallen, 0, left)
        if state.good + 1 == self.growth_interval:
            return LossState(_product(state.scale, self.growth_factor), 0, self.hysteresis)
        return state._replace(good=state.good + 1)


def overflow_limit(fmt: Format) -> float:
    """Returns the least magnitude that rounds to infinity, to nearest even: 65520 for FP16."""
    return fmt.max + math.ldexp(0.5, fmt.emax - fmt.mantissa_bits)


def loss_scales_over(
    recipe: LossScaler,
    amaxes: Floats,
    fmt: Format,
    *,
    broken: Bools | None = None,
    floors: Floats | None = None,
    ceilings: Floats | None = None,
) -> tuple[Floats, Bools, Bools]:
    """Returns the loss scale in force at each step, and which steps overflow.

    A step overflows where its largest gradient, unscaled, times the scale rounds to more than the
    format holds. Amaxes may be estimates between a floor and a ceiling: outside of these nothing is
    in doubt.

    Args:
        recipe: The scaler.
        amaxes: FP64 [steps], the largest unscaled gradient; NaN where not known at all.
        fmt: The gradients' format.
        broken: Bool [steps], gradients that are not finite at any scale.
        floors: FP64 [steps], by default `amaxes`.
        ceilings: FP64 [steps], by default `amaxes`.

    Returns:
        Scale FP64 [steps], skipped bool [steps], and whether it is in doubt that a step was or was
        not skipped, bool [steps]. A step of which nothing is known counts as taken, in doubt.
    """
    limit, state = overflow_limit(fmt), recipe.start()
    floors, ceilings = (amaxes if each is None else each for each in (floors, ceilings))
    broken = np.zeros(len(amaxes), np.bool_) if broken is None else broken
    scales, skipped, doubtful = [], [], []
    rows = zip(amaxes.tolist(), floors.tolist(), ceilings.tolist(), broken.tolist(), strict=True)
    for amax, floor, ceiling, ill in rows:
        scale = state.scale
        # A scale of inf makes NaN of a gradient that is 0.
        surely = ill or floor * scale >= limit or not math.isfinite(scale)
        surely_not = ceiling * scale < limit and not surely
        overflow = surely or (not surely_not and amax * scale >= limit)
        scales.append(scale)
        skipped.append(overflow)
        doubtful.append(not surely and not surely_not)
        state = recipe.step(state, overflow)
    return np.array(scales, np.float64), np.array(skipped, np.bool_), np.array(doubtful, np.bool_)


def _check_scale(name: str, key: str, scale: float) -> None:
    if not _FP32.smallest_subnormal <= scale <= _FP32.max:
        raise NumwatchError(f"{name}: {key} is positive and finite; got {scale!r}")


def _check_factors(name: str, growth: float, backoff: float, interval: int) -> None:
    if not (1.0 < growth < math.inf and 0.0 < backoff < 1.0 and interval >= 1):
        raise NumwatchError(
            f"{name} needs growth_factor above 1, backoff_factor between 0 and 1 and "
            f"growth_interval of 1 or more; got {growth:g}, {backoff:g} and {interval}"
        )


def _fp32(x: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(x))


def _product(scale: float, factor: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(scale) * np.float32(factor))
