"""What each target offers for the operands of a GEMM, the simplest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from numwatch.formats import BlockFormat, Format, Rounding, get_block_format, get_format
from numwatch.recipes.spec import Recipe, parse_recipe
from numwatch.recommend.thresholds import EIGHT_BITS, FOUR_BITS, INTEGER_WEIGHTS, Limits


@dataclass(frozen=True)
class Choice:
    """One way to round an operand."""

    format: Format | BlockFormat
    recipe: Recipe
    rounding: Rounding = "nearest"


@dataclass(frozen=True)
class Level:
    """A way to round a module's operands, the same kind of scale for all of them.

    A GEMM takes two operands with the same kind of scale, so a module is judged as a whole.

    Attributes:
        name: What its scales are, for people.
        operands: By role the alternatives; an operand that is missing is not rounded.
        multiple: What the module's features and outputs must be multiples of.
    """

    name: str
    operands: Mapping[str, tuple[Choice, ...]]
    multiple: int


@dataclass(frozen=True)
class Target:
    """A family of formats to train in.

    Attributes:
        levels: Ways to do it, the first that fits is taken.
        limits: What an operand may lose.
        keep_ends: Share of the network's blocks to keep at its start and at its end.
    """

    levels: tuple[Level, ...]
    limits: Limits
    keep_ends: bool = False


def _plain(recipe: str) -> Mapping[str, tuple[Choice, ...]]:
    e4m3, e5m2 = (Choice(get_format(name), parse_recipe(recipe)) for name in ("e4m3", "e5m2"))
    # Forward E4M3 alone: `_scaled_mm` takes no product of two E5M2, so only the gradient has a say.
    return {"input": (e4m3,), "weight": (e4m3,), "grad_output": (e4m3, e5m2)}


def _blocks(
    forward: str, weight: str, gradients: tuple[str, ...], recipe: str, rounding: Rounding
) -> Mapping[str, tuple[Choice, ...]]:
    def choices(names: tuple[str, ...], how: Rounding = "nearest") -> tuple[Choice, ...]:
        return tuple(Choice(get_block_format(name), parse_recipe(recipe), how) for name in names)

    return {
        "input": choices((forward,)),
        "weight": choices((weight,)),
        "grad_output": choices(gradients, rounding),
    }


def _nvfp4() -> Mapping[str, tuple[Choice, ...]]:
    fmt = get_block_format("nvfp4")
    rotated, square = parse_recipe("nvfp4:hadamard=true"), parse_recipe("nvfp4:square=true")
    return {
        "input": (Choice(fmt, rotated),),
        "weight": (Choice(fmt, square),),
        "grad_output": (Choice(fmt, rotated, "stochastic"),),
    }


GEMM_TARGETS: Mapping[str, Target] = {
    "fp8": Target(
        levels=(
            Level("one scale a tensor", _plain("current"), multiple=16),
            Level("one scale a row", _plain("rowwise:power_of_two=true"), multiple=16),
            Level(
                "one scale a block of 128",
                _blocks(
                    "block-fp8-1x128",
                    "block-fp8-128x128",
                    ("block-fp8-1x128",),
                    "block",
                    "nearest",
                ),
                multiple=128,
            ),
        ),
        limits=EIGHT_BITS,
    ),
    "mxfp8": Target(
        levels=(
            Level(
                "one scale a block of 32",
                _blocks(
                    "mxfp8-e4m3",
                    "mxfp8-e4m3",
                    ("mxfp8-e4m3", "mxfp8-e5m2"),
                    "mx:rule=rceil",
                    "nearest",
                ),
                multiple=32,
            ),
        ),
        limits=EIGHT_BITS,
    ),
    "mxfp4": Target(
        levels=(
            Level(
                "one scale a block of 32",
                _blocks("mxfp4", "mxfp4", ("mxfp4",), "mx:rule=rceil", "stochastic"),
                multiple=32,
            ),
        ),
        limits=FOUR_BITS,
        keep_ends=True,
    ),
    "nvfp4": Target(
        levels=(Level("one scale a block of 16, and one a tensor", _nvfp4(), multiple=16),),
        limits=FOUR_BITS,
        keep_ends=True,
    ),
    "int8-weights": Target(
        levels=(
            Level(
                "one scale a row",
                {"weight": (Choice(get_format("int8"), parse_recipe("rowwise")),)},
                multiple=1,
            ),
        ),
        limits=INTEGER_WEIGHTS,
    ),
}
"""Every target but `amp`, by name.

FP8: torchao's and Transformer Engine's recipes; MXFP8 all E4M3 with RCEIL, as Transformer Engine;
NVFP4 with 16x16 weights, stochastic gradients and Hadamard for the weight's gradient
(arXiv:2509.25149); INT8 weights by absmax of a row, activations left alone.
"""
