"""Plans for tests: any valid one, and small ones by hand."""

import math

from hypothesis import strategies as st

from numwatch.formats import BLOCK_FORMATS, FORMATS
from numwatch.plan import (
    OPERAND_ROLES,
    TARGETS,
    LossScale,
    ModulePlan,
    Operand,
    Plan,
    Prediction,
    Training,
)
from numwatch.plan.checks import format_for, formats_for
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling, StaticScaling
from numwatch.recipes.spec import parse_recipe
from numwatch.stats import Bounded

ODD_NAMES = ("yes", "NO", "null", "~", "1.0", "0", "010", "1e5", "0x1f", "1:30", ".inf", "<<", "=")
ODD_NAMES += ("a:b", "a: b", "a #b", "- a", "{a}", "[a]", "a,b", "'a'", '"a"', "a\\b", "", " ", "#")
ODD_NAMES += ("*a", "&a", "!a", "%a", "@a", "`a`", "?", "|", ">", "2026-01-01", "é", "模块", "🧮")
ODD_NAMES += ("a\nb", "a\tb", "\x00", "\x7f", "\x85", "\u2028", "\ufeff", "---", "...", "keep")

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
NAMES = st.sampled_from(ODD_NAMES) | st.text(max_size=12)
RECIPES = st.one_of(
    st.floats(2.0**-149, FORMATS["fp32"].max).map(StaticScaling),
    st.booleans().map(CurrentScaling),
    st.builds(
        DelayedScaling,
        st.integers(1, 5000),
        st.integers(0, 16),
        st.sampled_from(("max", "most_recent")),
    ),
    st.just(BlockScaling()),
    st.sampled_from(("floor", "ceil", "even", "rceil")).map(MXScaling),
    st.builds(NVFP4Scaling, st.booleans(), st.booleans()),
)
SHARES = st.lists(st.floats(0, allow_infinity=True), min_size=3, max_size=3).map(
    lambda three: Bounded(*(sorted(three)[at] for at in (1, 0, 2)))
) | st.floats(0, 1).map(Bounded.exactly)
PREDICTIONS = st.builds(Prediction, SHARES, SHARES, FLOATS, FLOATS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def format_called(name, recipe):
    blocks = isinstance(recipe, BlockScaling | MXScaling | NVFP4Scaling)
    return (BLOCK_FORMATS if blocks else FORMATS)[name]


@st.composite
def operands(draw):
    recipe = draw(RECIPES)
    return Operand(
        format_called(draw(st.sampled_from(formats_for(recipe))), recipe),
        recipe,
        draw(st.sampled_from(("nearest", "stochastic"))),
        draw(NAMES),
        draw(st.none() | PREDICTIONS),
    )


MODULES = st.builds(
    ModulePlan, NAMES, st.dictionaries(st.sampled_from(OPERAND_ROLES), operands()), NAMES
)
LOSS_SCALES = st.builds(
    LossScale,
    st.floats(0, exclude_min=True, allow_infinity=False),
    st.none() | st.integers(1, 10_000),
    NAMES,
)
TRAININGS = st.builds(
    Training,
    st.sampled_from(("fp16", "bf16", "fp32")),
    st.sampled_from(("fp16", "bf16", "fp32")),
    st.sampled_from(("nearest", "stochastic")),
    st.none() | LOSS_SCALES,
    st.dictionaries(NAMES, NAMES, max_size=3),
)
PLANS = st.builds(
    Plan,
    st.sampled_from(TARGETS),
    TRAININGS,
    st.lists(MODULES, max_size=4, unique_by=lambda module: module.module).map(tuple),
    st.dictionaries(NAMES, PLAIN, max_size=3),
)


def same(a, b):
    """Whether two plans are equal, a NaN being equal to a NaN."""
    return repr(a) == repr(b) if any(map(has_nan, (a, b))) else a == b


def has_nan(plan):
    return any(
        math.isnan(figure)
        for _, _, operand in plan.operands()
        if operand.predicted
        for figure in (operand.predicted.median_relative_error, operand.predicted.sqnr)
    )


def operand(fmt, recipe, **more):
    """Returns an operand by the names a plan's file has: `operand("e4m3", "current")`."""
    chosen = parse_recipe(recipe)
    return Operand(format_for(fmt, chosen), chosen, **more)


def gemm(name, **operands):
    """Returns a module's plan: `gemm("fc", input="e4m3 current")`."""
    return ModulePlan(name, {role: operand(*text.split()) for role, text in operands.items()})


def fp8(name, grad="e5m2", recipe="current"):
    return gemm(
        name,
        input=f"e4m3 {recipe}",
        weight=f"e4m3 {recipe}",
        grad_output=f"{grad} {recipe}",
    )
