"""`Plan`: what to use for each operand of each GEMM, and for the training as a whole, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from numwatch.errors import NumwatchError
from numwatch.formats import BlockFormat, Format, Rounding
from numwatch.plan.checks import check_fit, check_word
from numwatch.recipes.spec import Recipe
from numwatch.stats import Bounded

OPERAND_ROLES = ("input", "weight", "grad_output")
"""What enters the three GEMMs of a Linear: fprop input x weight, dgrad grad_output x weight, wgrad
grad_output x input."""
Storage = Literal["fp16", "bf16", "fp32"]
"""What a whole training can compute in and store its weights in."""
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

    Raises:
        NumwatchError: The recipe can't choose the format's scales.
    """

    format: Format | BlockFormat
    recipe: Recipe
    rounding: Rounding = "nearest"
    reason: str = ""
    predicted: Prediction | None = None

    def __post_init__(self) -> None:
        """Refuses what no library could run."""
        check_fit(self.format, self.recipe)
        check_word("rounding", self.rounding, get_args(Rounding))


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

    def __post_init__(self) -> None:
        """Refuses operands that no GEMM has."""
        for role in self.operands:
            check_word("an operand's role", role, OPERAND_ROLES)

    @property
    def kept(self) -> bool:
        """Whether the module stays in the training's own precision."""
        return not self.operands


@dataclass(frozen=True)
class LossScale:
    """What GradScaler is to be given.

    Attributes:
        init: The scale to start from; positive and finite.
        growth_interval: Steps without overflow before it doubles, >= 1; None for a static scale.
        reason: Why.
    """

    init: float
    growth_interval: int | None = 2000
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuses what GradScaler could not work with."""
        if not (self.init > 0 and math.isfinite(self.init)):
            raise NumwatchError(f"a loss scale is positive and finite; got {self.init!r}")
        if self.growth_interval is not None and self.growth_interval < 1:
            raise NumwatchError(
                f"a growth interval is 1 step or more; got {self.growth_interval!r}"
            )


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

    compute: Storage = "bf16"
    weights: Storage = "fp32"
    update_rounding: Rounding = "nearest"
    loss_scale: LossScale | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses formats that no whole training runs in."""
        check_word("compute", self.compute, get_args(Storage))
        check_word("weights", self.weights, get_args(Storage))
        check_word("update_rounding", self.update_rounding, get_args(Rounding))


@dataclass(frozen=True)
class Plan:
    """What a run is recommended to train in.

    Attributes:
        target: One of `TARGETS`.
        training: What holds for all of it.
        modules: GEMM modules in the order of data flow; empty for target `amp`.
        source: What it was derived from: run, steps, precision; text, numbers, lists, mappings.

    Raises:
        NumwatchError: An unknown target, or a module planned twice.
    """

    target: str
    training: Training = Training()
    modules: tuple[ModulePlan, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what could not be followed."""
        check_word("target", self.target, TARGETS)
        counts = Counter(module.module for module in self.modules)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise NumwatchError(f"a module is planned once; {twice[0]!r} is planned twice")

    def save(self, path: str | Path) -> None:
        """Writes the plan as YAML, whole or not at all; `numwatch.plan.load_plan` reads it.

        Raises:
            NumwatchError: The path can't be written, or the plan holds what has no text: a function
                as a delayed recipe's algorithm, a source that is not plain.
        """
        from numwatch.plan.yaml_file import save_plan  # it builds on this file

        save_plan(self, path)

    def operands(self) -> Iterator[tuple[str, str, Operand]]:
        """Yields module, role and operand of all that is rounded."""
        for module in self.modules:
            for role, operand in module.operands.items():
                yield module.module, role, operand
