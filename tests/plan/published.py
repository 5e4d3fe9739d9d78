"""What libraries that can't be installed here publish, as far as exports use it."""

import argparse
import sys
import types
from enum import Enum

import pytest

# Transformer Engine 2.20.2, `transformer_engine/common/recipe/__init__.py` of its wheel: the
# arguments that exports use, in their order.
RECIPES = {
    "DelayedScaling": ("margin", "fp8_format", "amax_history_len", "amax_compute_algo"),
    "Float8CurrentScaling": ("use_power_2_scales", "fp8_format"),
    "Float8BlockScaling": (
        "fp8_format",
        "x_block_scaling_dim",
        "w_block_scaling_dim",
        "grad_block_scaling_dim",
    ),
    "MXFP8BlockScaling": ("margin", "fp8_format"),
    "NVFP4BlockScaling": (
        "disable_rht",
        "disable_stochastic_rounding",
        "disable_2d_quantization",
        "fp4_format",
        "fp8_format",
    ),
}
# What each class reads from the environment when it is imported (the same file).
VARIABLES = {
    "NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES",
    "NVTE_NVFP4_DISABLE_RHT",
    "NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING",
    "NVTE_NVFP4_DISABLE_2D_QUANTIZATION",
}


@pytest.fixture
def transformer_engine(monkeypatch):
    """Modules with the published names, whose recipes take the published arguments alone."""
    recipe = types.ModuleType("transformer_engine.common.recipe")
    recipe.Format = Enum("Format", ["E2M1", "E4M3", "E5M2", "HYBRID"])

    def maker(name, allowed):
        def make(**arguments):
            assert set(arguments) <= set(allowed)
            return name, {k: getattr(v, "name", v) for k, v in arguments.items()}

        return make

    for name, allowed in RECIPES.items():
        setattr(recipe, name, maker(name, allowed))
    names = ("transformer_engine", "transformer_engine.common", "transformer_engine.pytorch")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, recipe.__name__, recipe)


def megatron_parser():
    """Megatron-LM's arguments at commit d98e8a64 (to be 0.20), as far as exports use them.

    `_add_mixed_precision_args` of `megatron/training/arguments.py` has the loss scale; the others
    are made from the fields of `TransformerConfig` and `ModelParallelConfig`, of which `fp8` and
    `fp4` bear the names `--fp8-format` and `--fp4-format`.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in ("fp16", "bf16", "first-last-layers-bf16"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("loss-scale", "initial-loss-scale", "min-loss-scale", "loss-scale-window"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("start", "end"):
        parser.add_argument(f"--num-layers-at-{name}-in-bf16", type=int, default=1)
    for name in ("hysteresis", "fp8-margin", "fp8-amax-history-len"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--fp8-format", choices=["e4m3", "hybrid"])
    recipes = ["tensorwise", "delayed", "mxfp8", "blockwise", "custom"]
    parser.add_argument("--fp8-recipe", choices=recipes)
    parser.add_argument("--fp8-amax-compute-algo", choices=["most_recent", "max"])
    parser.add_argument("--fp4-format", choices=["e2m1"])
    parser.add_argument("--fp4-recipe", choices=["nvfp4", "custom"])
    return parser
