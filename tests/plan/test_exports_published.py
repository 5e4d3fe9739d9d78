"""Exports to libraries that can't be installed here, against what these publish."""

import ast
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_builders import NAMES, fp8, gemm, operand
from published import VARIABLES, megatron_parser, transformer_engine

from numwatch.errors import NumwatchError
from numwatch.plan import LossScale, ModulePlan, Plan, Training
from numwatch.plan.exports import export

ROLES = ("input", "weight", "grad_output")
POWERS = "NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES"

__all__ = ["transformer_engine"]


def kind(*three, name="0"):
    """Returns a module's plan from one text for all operands, or from three."""
    return gemm(name, **dict(zip(ROLES, three * 3 if len(three) == 1 else three, strict=True)))


def nvfp4(name="0"):
    rotated, square = "nvfp4:hadamard=true", "nvfp4:square=true"
    operands = (
        operand("nvfp4", rotated),
        operand("nvfp4", square),
        operand("nvfp4", rotated, rounding="stochastic"),
    )
    return ModulePlan(name, dict(zip(ROLES, operands, strict=True)))


def stochastic(role, fmt="e4m3", recipe="current"):
    operands = {
        each: operand(fmt, recipe, rounding="stochastic" if each == role else "nearest")
        for each in ROLES
    }
    return ModulePlan("0", operands)


DELAYED = [f"{fmt} delayed:history=16,margin=1" for fmt in ("e4m3", "e4m3", "e5m2")]
BLOCKS = [f"block-fp8-{size} block" for size in ("1x128", "128x128", "1x128")]
HISTORY = "--fp8-amax-history-len 16 --fp8-amax-compute-algo max"
WINDOW = "--loss-scale-window 500 --hysteresis 2"
OFF = ["disable_rht", "disable_stochastic_rounding", "disable_2d_quantization"]

# A module; Transformer Engine's class, arguments and environment; Megatron's flags besides --bf16,
# None where it has no such recipe.
KINDS = {
    "delayed": (
        kind(*DELAYED),
        "DelayedScaling",
        {"margin": 1, "fp8_format": "HYBRID", "amax_history_len": 16, "amax_compute_algo": "max"},
        {},
        f"--fp8-format hybrid --fp8-recipe delayed --fp8-margin 1 {HISTORY}",
    ),
    "current": (
        kind("e4m3 current"),
        "Float8CurrentScaling",
        {"fp8_format": "E4M3"},
        {},
        "--fp8-format e4m3 --fp8-recipe tensorwise",
    ),
    "hybrid": (
        fp8("0"),
        "Float8CurrentScaling",
        {"fp8_format": "HYBRID"},
        {},
        "--fp8-format hybrid --fp8-recipe tensorwise",
    ),
    "powers of two": (
        kind("e4m3 current:power_of_two=true"),
        "Float8CurrentScaling",
        {"fp8_format": "E4M3"},
        {POWERS: "1"},
        "--fp8-format e4m3 --fp8-recipe tensorwise",
    ),
    "blocks": (
        kind(*BLOCKS),
        "Float8BlockScaling",
        {"fp8_format": "E4M3"},
        {},
        "--fp8-format e4m3 --fp8-recipe blockwise",
    ),
    "blocks in one direction": (
        kind(BLOCKS[0]),
        "Float8BlockScaling",
        {"fp8_format": "E4M3", "w_block_scaling_dim": 1},
        {},
        None,
    ),
    "square gradients": (
        kind(BLOCKS[0], BLOCKS[0], BLOCKS[1]),
        "Float8BlockScaling",
        {"fp8_format": "E4M3", "w_block_scaling_dim": 1, "grad_block_scaling_dim": 2},
        {},
        None,
    ),
    "mxfp8": (
        kind("mxfp8-e4m3 mx:rule=rceil"),
        "MXFP8BlockScaling",
        {"fp8_format": "E4M3"},
        {},
        "--fp8-format e4m3 --fp8-recipe mxfp8",
    ),
    "mxfp8 hybrid": (
        kind(*["mxfp8-e4m3 mx:rule=rceil"] * 2, "mxfp8-e5m2 mx:rule=rceil"),
        "MXFP8BlockScaling",
        {"fp8_format": "HYBRID"},
        {},
        "--fp8-format hybrid --fp8-recipe mxfp8",
    ),
    "nvfp4": (nvfp4(), "NVFP4BlockScaling", {}, {}, "--fp4-format e2m1 --fp4-recipe nvfp4"),
    "bare nvfp4": (
        kind("nvfp4 nvfp4"),
        "NVFP4BlockScaling",
        dict.fromkeys(OFF, True),
        {f"NVTE_NVFP4_{name.upper()}": "1" for name in OFF},
        "--fp4-format e2m1 --fp4-recipe nvfp4",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_transformer_engine_is_called_as_published(name, transformer_engine, monkeypatch):
    module, cls, arguments, environment, _ = KINDS[name]
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    kept = ModulePlan("out", reason="last\nlayer")
    code = export(Plan("fp8", modules=(module, kept)), "transformer-engine")
    body = code.partition("with te.autocast(enabled=True, recipe=recipe):")[0]
    found = {}
    exec(compile(body, "exported", "exec"), found)
    assert found["recipe"] == (cls, arguments)
    assert found["kept"] == {"out"}
    assert "# last layer" in code
    # NVFP4's switches are arguments there, and variables for Megatron alone.
    assert (POWERS in code) == (POWERS in environment)
    if environment and cls != "NVFP4BlockScaling":
        assert code.index("os.environ") < code.index("import transformer_engine")


@pytest.mark.parametrize("name", KINDS)
def test_megatron_takes_the_flags(name):
    module, _, _, environment, flags = KINDS[name]
    plan = Plan("fp8", modules=(ModulePlan(f"layers.0.{name}", module.operands),))
    if flags is None:
        with pytest.raises(NumwatchError, match="Megatron-LM scales weights in blocks of 128x128"):
            export(plan, "megatron")
        return
    text = export(plan, "megatron")
    lines = text.splitlines()
    given = " ".join(line for line in lines if not line.startswith("#"))
    assert given == f"--bf16 {flags}"
    assert megatron_parser().parse_args(given.split()).bf16
    told = dict(re.findall(r"# in the environment: (\w+)=(\w+)", text))
    assert told == environment
    assert set(told) <= VARIABLES


REFUSED = {
    "a scale a row": kind("e4m3 rowwise"),
    "a fixed scale": kind("e4m3 static:scale=2.0"),
    "E5M2 weights": kind("e4m3 current", "e5m2 current", "e5m2 current"),
    "E5M2 alone": kind("e5m2 current"),
    "two histories": kind("e4m3 delayed:history=16", "e4m3 delayed", "e4m3 delayed"),
    "two recipes": kind("e4m3 current", "e4m3 delayed", "e4m3 current"),
    "OCP's rule": kind("mxfp8-e4m3 mx"),
    "two rules": kind("mxfp8-e4m3 mx:rule=rceil", "mxfp8-e4m3 mx", "mxfp8-e4m3 mx:rule=rceil"),
    "MXFP4": kind("mxfp4 mx:rule=rceil"),
    "squares times squares": kind(BLOCKS[1]),
    "stochastic FP8": stochastic("grad_output"),
    "stochastic NVFP4 inputs": stochastic("input", "nvfp4", "nvfp4"),
    "square NVFP4 inputs": kind("nvfp4 nvfp4:square=true"),
    "one operand rotated": kind("nvfp4 nvfp4:hadamard=true", "nvfp4 nvfp4", "nvfp4 nvfp4"),
    "BF16": kind("bf16 current"),
}


@pytest.mark.parametrize("to", ["transformer-engine", "megatron"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_recipe_does_is_refused(name, to):
    with pytest.raises(NumwatchError, match=r"^Transformer Engine has no recipe for input "):
        export(Plan("fp8", modules=(REFUSED[name],)), to)


@pytest.mark.parametrize("to", ["transformer-engine", "megatron"])
def test_gradients_are_in_e5m2_if_any_module_needs_them(to):
    narrow = [kind("e4m3 current", name=f"layers.{at}.fc") for at in (0, 1)]
    text = export(Plan("fp8", modules=(*narrow, fp8("layers.2.fc"))), to)
    chosen = {"transformer-engine": "Format.HYBRID", "megatron": "--fp8-format hybrid"}
    assert chosen[to] in text
    assert "planned otherwise: input e4m3 current, weight e4m3 current, grad_output e4m3" in text
    assert all(repr(module.module) in text for module in narrow)


def test_transformer_engine_keeps_nothing_where_nothing_is_kept(transformer_engine):
    code = export(Plan("fp8", modules=(fp8("0"),)), "transformer-engine")
    found = {}
    exec(code.partition("with te.autocast")[0], found)
    assert found["kept"] == set()
    with pytest.raises(NumwatchError, match="Transformer Engine has nothing to do"):
        export(Plan("fp8", modules=(ModulePlan("0"),)), "transformer-engine")


LAYERS = [
    ModulePlan("embed.proj"),
    ModulePlan("layers.0.fc"),
    fp8("layers.1.fc"),
    ModulePlan("layers.1.out"),
    fp8("layers.2.fc"),
    fp8("layers.10.fc"),
    ModulePlan("layers.11.fc"),
    ModulePlan("layers.12.fc"),
    fp8("head"),
]


def with_recipe(text):
    return tuple(module if module.kept else kind(text, name=module.module) for module in LAYERS)


def test_megatron_keeps_whole_layers_at_either_end_and_says_who_else_was_to_stay():
    text = export(Plan("fp8", modules=tuple(LAYERS)), "megatron")
    flags = " ".join(line for line in text.splitlines() if not line.startswith("#"))
    found = megatron_parser().parse_args(flags.split())
    assert found.first_last_layers_bf16
    assert (found.num_layers_at_start_in_bf16, found.num_layers_at_end_in_bf16) == (1, 2)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# planned to stay, but no flag keeps it: 'layers.1.out'",
        "# stays, as all outside of the layers: 'embed.proj'",
        "# planned, but nothing is rounded outside of the layers: 'head'",
    ]


def test_megatrons_delayed_scaling_keeps_no_layers():
    # `TransformerConfig.__post_init__`: "Delayed scaling does not support first / last layer in
    # BF16."
    text = export(Plan("fp8", modules=with_recipe("e4m3 delayed")), "megatron")
    assert "first-last" not in text
    kept = [module.module for module in LAYERS if module.kept and "layers" in module.module]
    for name in kept:
        assert f"# planned to stay, but no flag keeps it: {name!r}" in text


def test_megatron_counts_layers_without_a_planned_module_and_the_longest_stack():
    modules = (fp8("vision.layers.0.fc"), fp8("text.layers.3.fc"), fp8("text.layers.4.fc"))
    text = export(Plan("fp8", modules=modules), "megatron")
    assert "--num-layers-at-start-in-bf16 3\n--num-layers-at-end-in-bf16 0\n" in text
    assert "# planned, but nothing is rounded outside of the layers: 'vision.layers.0.fc'" in text


@pytest.mark.parametrize(
    ("training", "flags"),
    [
        (
            Training("fp16", loss_scale=LossScale(2.0**20, 500)),
            f"--fp16 --initial-loss-scale 1048576.0 --min-loss-scale 1.0 {WINDOW}",
        ),
        (Training("fp16", loss_scale=LossScale(1024, None)), "--fp16 --loss-scale 1024"),
        (Training("fp16"), "--fp16"),
        (Training("bf16", loss_scale=LossScale(8.0)), "--bf16"),
        (Training("fp32"), ""),
    ],
)
def test_megatron_takes_the_loss_scale(training, flags):
    text = export(Plan("amp", training), "megatron")
    given = " ".join(line for line in text.splitlines() if not line.startswith("#"))
    assert given == flags
    found = megatron_parser().parse_args(given.split())
    if "--initial" in flags:
        assert found.initial_loss_scale == training.loss_scale.init
    left_out = training.compute == "bf16"
    assert ("# left out: the loss scale of 8.0" in text) == left_out


def test_megatron_says_what_it_does_to_low_weights():
    text = export(Plan("amp", Training("bf16", "bf16")), "megatron")
    assert text == "--bf16\n# planned otherwise: weights in bf16; Megatron keeps FP32\n"


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True), NAMES)
def test_names_and_reasons_of_any_kind_leave_code_and_flags_whole(names, reason):
    planned, kept = names[:-1], names[-1]
    plan = Plan("fp8", modules=(*map(fp8, planned), ModulePlan(kept, reason=reason)))
    tree = ast.parse(export(plan, "torchao"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (filtered,) = (node for node in calls if getattr(node.func, "id", "") == "planned")
    assert [argument.value for argument in filtered.args] == planned
    tree = ast.parse(export(plan, "transformer-engine"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.Set))
    assert [element.value for element in found.elts] == [kept]
    flags = [line for line in export(plan, "megatron").splitlines() if not line.startswith("#")]
    assert megatron_parser().parse_args(" ".join(flags).split()).fp8_recipe == "tensorwise"
