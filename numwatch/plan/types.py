"""`Plan`: what to use for each operand of each GEMM, and for the training as a whole, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numwatch.formats import BlockFormat, Format, Rounding
from numwatch.recipes.spec import Recipe
from numwatch.stats import Bounded

OPERAND_ROLES = ("input", "weight", "grad_output")
"""What enters the three GEMMs of a Linear: fprop input x weight, dgrad grad_output x weight, wgrad
grad_output x input."""
TARGETS = ("amp", "fp8", "mxfp8", "mxfp4", "nvfp4", "int8-weights")


@dataclass(frozen=True)
class Prediction:
    """What the record says a choice would do to an operand; shares over the non-zero elements.

    Attributes:
        flushed: Share that becomes zero.
        saturated: Share above the format's largest value.
        median_relative_error: Of a typical element; 1 where it is flushed.
        sqnr: Signal to quantisation noise, in dB.
    """

    flushed: Bounded
    saturated: Bounded
    median_relative_error: float
    sqnr: float


@dataclass(frozen=True)
class Operand:
    """How one operand is rounded before it enters its GEMMs.

    Attributes:
        format: Format of its elements, or a block format.
        recipe: How its scale is chosen; fits the format, see `plan.checks`.
        rounding: `nearest`, or `stochastic`.
        reason: Why, in a few words.
        predicted: What the record says of it; None in a plan written by hand.
    """

    format: Format | BlockFormat
    recipe: Recipe
    rounding: Rounding = "nearest"
    reason: str = ""
    predicted: Prediction | None = None


@dataclass(frozen=True)
class ModulePlan:
    """One GEMM module.

    Attributes:
        module: Its path in the unwrapped model.
        operands: By role, those that are rounded. Empty where the module is kept as it is.
        reason: Why it is kept as it is, or what holds for all its operands.
    """

    module: str
    operands: Mapping[str, Operand] = field(default_factory=dict)
    reason: str = ""

    @property
    def kept(self) -> bool:
        """Whether the module stays in the training's own precision."""
        return not self.operands


@dataclass(frozen=True)
class LossScale:
    """What GradScaler is to be given.

    Attributes:
        init: The scale to start from.
        growth_interval: Steps without overflow before it doubles; None for a static scale.
        reason: Why.
    """

    init: float
    growth_interval: int | None = 2000
    reason: str = ""


@dataclass(frozen=True)
class Training:
    """What holds for the whole run.

    Attributes:
        compute: Format autocast computes in, `fp16` or `bf16`; `fp32` for none.
        weights: Format the weights are stored in; `fp32` where they are, or need, masters.
        update_rounding: `stochastic` where low weights are to round updates so.
        loss_scale: None where none is needed.
        reasons: Why, by the name of the attribute.
    """

    compute: Literal["fp16", "bf16", "fp32"] = "bf16"
    weights: Literal["fp16", "bf16", "fp32"] = "fp32"
    update_rounding: Rounding = "nearest"
    loss_scale: LossScale | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a run is recommended to train in.

    Attributes:
        target: One of `TARGETS`.
        training: What holds for all of it.
        modules: GEMM modules in the order of data flow; empty for target `amp`.
        source: What it was derived from: run, steps, precision; plain values.
    """

    target: str
    training: Training = Training()
    modules: tuple[ModulePlan, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    def operands(self) -> Iterator[tuple[str, str, Operand]]:
        """Yields module, role and operand of all that is rounded."""
        for module in self.modules:
            for role, operand in module.operands.items():
                yield module.module, role, operand
