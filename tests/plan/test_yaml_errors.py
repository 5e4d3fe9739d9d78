"""Each mistake a person can make in a plan.yaml, and the one line it gives."""

import pytest
from plan_builders import fp8

from numwatch.errors import NumwatchError
from numwatch.plan import LossScale, ModulePlan, Plan, check_modules, parse_plan

HEAD = "version: 1\ntarget: fp8\n"
OPERAND = HEAD + "modules:\n  blocks.0.fc:\n    input: {}\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
ROLES = "input, weight, grad_output"

MISTAKES = {
    "": "line 1: the file is empty; a plan has version: and target:",
    "target: fp8": "line 1: the key 'version' is missing",
    "version: 1": "line 1: the key 'target' is missing",
    "version: 2": "line 1, version: this plan has version 2, from a newer numwatch; this one reads "
    "1: upgrade numwatch",
    "version: 0": "line 1, version: the version of a plan is 1; got 0",
    "version: one": "line 1, version: here a whole number is needed; got text, 'one'",
    "version: 1\ntarget: fp9": "line 2, target: target is one of amp, fp8, mxfp8, mxfp4, nvfp4, "
    "int8-weights; got 'fp9'; did you mean 'fp8' or 'nvfp4' or 'mxfp8'?",
    "version: 1\ntarget: yes": "line 2, target: here text is needed; got a switch, True: put it in "
    "quotes",
    HEAD + "module: {}": "line 3, module: unknown key 'module': allowed are version, target, "
    "source, training, modules, predicted; did you mean 'modules' or 'source'?",
    HEAD + "modules: [fc]": "line 3, modules: here a mapping (key: value) is needed; got a list",
    HEAD + "modules:\n  fc: e4m3": "line 4, modules / fc: here a mapping (key: value) is needed; "
    "got text, 'e4m3'",
    HEAD + "modules:\n  fc:": "line 4, modules / fc: a module has keep: WHY or some of "
    f"{ROLES}; got none",
    HEAD
    + "modules:\n  fc:\n    wieght: {}": "line 5, modules / fc / wieght: unknown key 'wieght': "
    f"allowed are {ROLES}, reason, keep; did you mean 'weight'?",
    HEAD + "modules:\n  fc: {keep: late, input: {}}": "line 4, modules / fc: a kept module has "
    "keep: WHY alone; remove that, or all the rest",
    HEAD + "modules:\n  fc: {keep: true}\n\n  fc: {keep: true}": "line 6, modules / fc: the key "
    "'fc' comes twice: remove one",
    OPERAND.format("{format: e4m3}"): "line 5, modules / blocks.0.fc / input: the key 'recipe' is "
    "missing",
    OPERAND.format("{format: e4m4, recipe: mx}"): "line 5, modules / blocks.0.fc / input / format: "
    "unknown format 'e4m4': allowed are fp32, tf32, bf16, fp16, e4m3, e4m3fnuz, e5m2, e5m2fnuz, "
    "e3m2, e2m3, e2m1, int8, mxfp8-e4m3, mxfp8-e5m2, mxfp6-e3m2, mxfp6-e2m3, mxfp4, mxint8, nvfp4, "
    "block-fp8-1x128, block-fp8-128x128; did you mean 'e4m3' or 'e4m3fn' or 'fp8_e4m3'?",
    OPERAND.format("{format: 8, recipe: mx}"): "line 5, modules / blocks.0.fc / input / format: "
    "here text is needed; got a number, 8: put it in quotes",
    OPERAND.format("{format: e4m3, recipe: curent}"): "line 5, modules / blocks.0.fc / input / "
    "recipe: unknown recipe 'curent': allowed are static, delayed, current, rowwise, block, mx, "
    "nvfp4; did you mean 'current'?",
    OPERAND.format("{format: e4m3, recipe: 'delayed:histroy=4'}"): "line 5, modules / blocks.0.fc "
    "/ input / recipe: recipe 'delayed:histroy=4' has 'histroy=4': delayed takes history=, "
    "margin=, algorithm=; did you mean 'history'?",
    OPERAND.format("{format: e4m3, recipe: delayed:history=4,margin=1}"): "line 5, modules / "
    "blocks.0.fc / input / margin=1: a recipe with a comma needs quotes: recipe: "
    "'delayed:history=16,margin=1'",
    OPERAND.format("{format: mxfp8, recipe: rowwise}"): "line 5, modules / blocks.0.fc / input / "
    "format: recipe 'rowwise' takes fp32, tf32, bf16, fp16, e4m3, e4m3fnuz, e5m2, e5m2fnuz, e3m2, "
    "e2m3, e2m1, int8; got 'mxfp8-e4m3'",
    OPERAND.format("{format: e4m3, recipe: block}"): "line 5, modules / blocks.0.fc / input / "
    "format: recipe 'block' takes block-fp8-1x128, block-fp8-128x128; got 'e4m3'",
    OPERAND.format("{format: nvfp4, recipe: 'mx:rule=ceil'}"): "line 5, modules / blocks.0.fc / "
    "input / format: recipe 'mx:rule=ceil' takes mxfp8-e4m3, mxfp8-e5m2, mxfp6-e3m2, mxfp6-e2m3, "
    "mxfp4, mxint8; got 'nvfp4'",
    OPERAND.format("{format: mxfp4, recipe: nvfp4}"): "line 5, modules / blocks.0.fc / input / "
    "format: recipe 'nvfp4' takes nvfp4; got 'mxfp4'",
    OPERAND.format("{format: e8m0, recipe: current}"): "line 5, modules / blocks.0.fc / input / "
    "format: recipe 'current' takes fp32, tf32, bf16, fp16, e4m3, e4m3fnuz, e5m2, e5m2fnuz, e3m2, "
    "e2m3, e2m1, int8; got 'e8m0'",
    OPERAND.format("{format: e4m3, recipe: current, rounding: stochastik}"): "line 5, modules / "
    "blocks.0.fc / input / rounding: rounding is one of nearest, stochastic; got 'stochastik'; did "
    "you mean 'stochastic'?",
    HEAD + "training: {compute: fp8}": "line 3, training / compute: compute is one of fp16, bf16, "
    "fp32; got 'fp8'; did you mean 'fp32' or 'fp16'?",
    HEAD + "training:\n  loss_scale: {init: 0}": "line 4, training / loss_scale: a loss scale is "
    "positive and finite; got 0.0",
    HEAD + "training:\n  loss_scale: {init: .inf}": "line 4, training / loss_scale: a loss scale "
    "is positive and finite; got inf",
    HEAD + "training:\n  loss_scale: 1024": "line 4, training / loss_scale: here a mapping (key: "
    "value) is needed; got a number, 1024",
    HEAD + "training:\n  loss_scale: {growth_interval: 5}": "line 4, training / loss_scale: the "
    "key 'init' is missing",
    HEAD + "training:\n  loss_scale: {init: 1e4, growth_interval: 0}": "line 4, training / "
    "loss_scale: a growth interval is 1 step or more; got 0",
    HEAD + "training:\n  loss_scale: {init: 1e4, growth_interval: 1.5}": "line 4, training / "
    "loss_scale / growth_interval: here a whole number is needed; got a number, 1.5",
    HEAD + "training:\n  loss_scale: {init: many}": "line 4, training / loss_scale / init: here a "
    "number is needed; got text, 'many'",
    "modules: {fc: {": "line 2, column 1: no valid YAML: did not find expected node content",
    "a:\n\t- b": "line 2, column 1: no valid YAML: found character that cannot start any token",
    "a: \x00": "no valid YAML: unacceptable character #x0000: control characters are not allowed "
    'in "<unicode string>", position 3',
    BOMB: "line 1, a: anchors and aliases (&name, *name) are not allowed in a plan: write it out",
    "a: !!python/object/apply:os.system [ls]": "line 1, a: the tag tag:yaml.org,2002:python/object/"
    "apply:os.system is not allowed in a plan",
    "a: !!binary eA==": "line 1, a: the tag tag:yaml.org,2002:binary is not allowed in a plan",
    "<<: {version: 1}": "line 1: the key 'version' is missing",
    "? [a]\n: b": "line 1: a key is text; got a list, a mapping or an alias",
    "a: b\n---\na: c": "line 1: a plan is one YAML document; got several (---)",
    "a: " + "[" * 60 + "]" * 60: "this is nested too deep for a plan",
    # libyaml has a limit of its own from 0.2.6 on.
    "a: " + "[" * 100_000: (
        "no valid YAML: exceeded maximum nesting depth",
        "this is nested too deep for a plan",
    ),
    "version: " + "9" * 5000: "line 1, version: here a number is needed; got one of 5000 digits",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_a_mistake_gives_one_line_that_says_where_and_what(text, message):
    with pytest.raises(NumwatchError) as caught:
        parse_plan(text, "plan.yaml")
    found = str(caught.value)
    assert "\n" not in found
    assert found.startswith("plan.yaml")
    assert found.endswith(message)


FIGURES = "of: e4m3 current, saturated: 0, median_relative_error: 0, sqnr: 30"
PREDICTED = OPERAND.format("{format: e4m3, recipe: current}")
PREDICTED += "predicted:\n  blocks.0.fc:\n    input: {FIGURES}\n"


@pytest.mark.parametrize(
    ("flushed", "message"),
    [
        (
            "[0.1, 0.2, 0.3]",
            "here [estimate, lowest, highest] is needed; 0.1 is outside [0.2, 0.3]",
        ),
        ("[0.1, 0.0]", "here [estimate, lowest, highest] is needed; got 2 figures"),
        (".nan", "here [estimate, lowest, highest] is needed; nan is outside [nan, nan]"),
        ("few", "here a number is needed; got text, 'few'"),
    ],
)
def test_a_damaged_prediction_is_refused(flushed, message):
    text = PREDICTED.replace("FIGURES", f"{FIGURES}, flushed: {flushed}")
    with pytest.raises(NumwatchError) as caught:
        parse_plan(text, "plan.yaml")
    place = "plan.yaml, line 8, predicted / blocks.0.fc / input / flushed: "
    assert str(caught.value) == place + message


def test_figures_of_modules_and_operands_that_are_gone_do_no_harm():
    text = HEAD + "predicted:\n  gone:\n    input: {of: e4m3 current}\n"
    assert parse_plan(text) == Plan("fp8")


def test_a_plan_for_another_model_names_what_is_near():
    plan = Plan("fp8", modules=tuple(map(fp8, ("a.fc1", "b.head", "c", "d", "e"))))
    check_modules(plan, ["", "a.fc1", "b.head", "c", "d", "e", "more"])
    with pytest.raises(NumwatchError) as caught:
        check_modules(plan, ["", "a", "a.fc1", "b", "b.heads"])
    assert str(caught.value) == (
        "the plan names 4 of 5 modules that the model lacks: 'b.head'; did you mean 'b.heads'?, "
        "'c', 'd', and 1 more"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan("fp9"), "target is one of amp, fp8"),
        (lambda: Plan("fp8", modules=(fp8("a"), fp8("a"))), "'a' is planned twice"),
        (lambda: ModulePlan("a", {"output": None}), "role is one of input, weight, grad_output"),
        (lambda: LossScale(-1.0), "positive and finite; got -1.0"),
    ],
)
def test_no_impossible_plan_can_be_made(make, message):
    with pytest.raises(NumwatchError, match=message):
        make()
