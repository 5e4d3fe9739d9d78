"""Which phase of a step was not finite first, told by an origin, by rows or by scalars alone."""

import math

import pytest
import torch
from diagnosis_builders import Step, found, layers, make_run, slot, spread

from numwatch.diagnose.failing import Failure
from numwatch.diagnose.rules import forward, nonfinite

RULES = (*nonfinite.RULES, *forward.RULES)
INFOS = layers(3)
NAMES = [info.slot for info in INFOS]
AT = 4


def rows_from(first, value=math.nan, n=8, loss=None, spoilt=None, **scalars):
    """Rows in which from step AT on the slot `first` and all after it hold a value."""
    start = NAMES.index(first)
    steps = []
    for number in range(n):
        late = number >= AT
        bad = spoilt if spoilt is not None else NAMES[start:]
        tensors = {
            name: torch.tensor([1.0, value]) if late and name in bad else spread(1.0)
            for name in NAMES
        }
        given = {"loss": math.nan if loss is None and late else 1.0, **(scalars if late else {})}
        steps.append(Step(given, tensors))
    return steps


def origin(step=AT, **fields):
    base = {"module": "", "operation": "", "source": "", "value": "nan", "inputs": [], "tensor": ""}
    return ("origin", step, {**base, "note": "", **fields})


def taken(low, high, dtype="float16"):
    return {"shape": [4], "dtype": dtype, "low": low, "high": high, "nonfinite": 0}


def first_of(rules):
    return min(rules.values(), key=lambda each: each.step)


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        ("net.0:weight", "nan-in-parameter"),
        ("net.2:weight", "nan-in-parameter"),
        ("net.0:input", "nan-in-data"),
        ("net.1:input", "nan-in-forward"),
    ],
)
def test_rows_tell_the_phase(tmp_path, first, rule):
    run = make_run(tmp_path, INFOS, rows_from(first))
    only = first_of(found(run, *RULES))
    assert (only.rule, only.step, only.slot, only.severity) == (rule, AT, first, "critical")
    assert only.order == NAMES.index(first)


def test_what_a_later_module_hands_to_the_first_is_no_data(tmp_path):
    """A GAN: the discriminator takes the batch, then what the generator has made overflow."""
    spoilt = ["net.0:input", "net.0:output", "net.2:output"]
    run = make_run(tmp_path, INFOS, rows_from("net.0:input", math.inf, spoilt=spoilt))
    only = first_of(found(run, *RULES))
    assert (only.rule, only.slot, only.step) == ("forward-overflow", "net.2:output", AT)


def test_rows_of_a_finite_forward_leave_the_loss(tmp_path):
    run = make_run(tmp_path, INFOS, rows_from("net.2:grad_output"))
    only = found(run, *RULES)["nan-in-loss"]
    assert (only.step, only.slot) == (AT, None)
    assert "forward is finite" in only.cause


def test_rows_of_a_finite_loss_leave_the_backward(tmp_path):
    run = make_run(tmp_path, INFOS, rows_from("net.1:grad_output", loss=1.0))
    (only,) = found(run, *RULES).values()
    assert (only.rule, only.slot) == ("nan-in-backward", "net.1:grad_output")


def test_a_loss_that_was_not_seen_is_not_called_finite(tmp_path):
    """Under manual optimization `training_step` returns none."""
    steps = rows_from("net.1:grad_output", loss=1.0)
    for step in steps:
        step.scalars["loss"] = None
    run = make_run(tmp_path, INFOS, steps)
    (only,) = found(run, *RULES).values()
    assert only.rule == "nan-in-backward"
    assert "the loss was not seen" in only.cause
    assert "loss are finite" not in only.cause


def test_an_infinity_in_the_forward_is_an_overflow(tmp_path):
    run = make_run(tmp_path, INFOS, rows_from("net.1:output", math.inf))
    only = first_of(found(run, *RULES))
    assert (only.rule, only.slot) == ("forward-overflow", "net.1:output")
    assert "65504" in only.cause


def test_gradients_that_overflow_under_a_scaler_are_its_work(tmp_path):
    given = {"found_inf": True, "skipped": True, "loss_scale_before": 2.0**16}
    steps = rows_from("net.2:grad_output", math.inf, n=6, loss=1.0, **given)
    assert found(make_run(tmp_path, INFOS, steps), *RULES) == {}


def test_intended_masks_are_not_blamed(tmp_path):
    """-inf in what a softmax takes at every step; the NaN comes up behind it."""
    infos = [slot("attn", "input", 0), slot("attn", "output", 1), slot("head", "output", 2)]
    mask = torch.tensor([1.0, -math.inf])
    bad = torch.tensor([1.0, math.nan])
    fine, failing = (
        Step({"loss": loss}, dict(zip([i.slot for i in infos], (mask, *rest), strict=True)))
        for loss, rest in ((1.0, (spread(1.0), spread(1.0))), (math.nan, (spread(1.0), bad)))
    )
    assert found(make_run(tmp_path / "a", infos, [fine] * 6), *RULES) == {}
    only = first_of(found(make_run(tmp_path / "b", infos, [*[fine] * 4, failing]), *RULES))
    assert (only.rule, only.slot, only.step) == ("nan-in-forward", "head:output", 4)


def test_weights_that_turn_nan_within_a_step_are_not_the_forward(tmp_path):
    """Under manual optimization a step has several forwards, before and after an update."""
    spoilt = ["net.0:output", "net.1:input", "net.1:output", "net.2:input", "net.2:output"]
    run = make_run(tmp_path, INFOS, rows_from("net.0:output", spoilt=spoilt))
    assert set(found(run, *RULES)) == {"nan-in-loss"}


def test_an_origin_names_operation_source_and_range(tmp_path):
    event = origin(
        phase="forward",
        module="net.1",
        operation="aten.div.Tensor",
        source="model.py:42 in forward: return x / x.norm()",
        inputs=[taken(-3.0, 4.0), taken(0.0, 2.0)],
    )
    run = make_run(tmp_path, INFOS, rows_from("net.2:input"), events=[event])
    only = first_of(found(run, *RULES))
    assert (only.rule, only.slot, only.step) == ("nan-in-forward", "net.1", AT)
    assert "`div` in net.1 at model.py:42 in forward: return x / x.norm() makes NaN" in only.cause
    assert "eps" in only.cure
    figures = {figure.name: figure.value for figure in only.evidence}
    assert figures["low of input 1 (float16)"] == 0.0
    assert figures["high of input 0 (float16)"] == 4.0


@pytest.mark.parametrize(
    ("phase", "operation", "value", "inputs", "rule"),
    [
        ("data", "", "nan", [], "nan-in-data"),
        ("parameter", "", "nan", [], "nan-in-parameter"),
        ("loss", "aten.log.default", "inf", [taken(0.0, 1.0)], "nan-in-loss"),
        ("forward", "aten.exp.default", "inf", [taken(-1.0, 12.0)], "forward-overflow"),
        ("forward", "aten._to_copy.default", "inf", [taken(0.0, 1.7e9)], "forward-overflow"),
        ("forward", "aten._softmax.default", "nan", [taken(0.0, 1.0)], "nan-in-forward"),
        # 1/0 and log 0 are infinite in any format; 1/2^-20 is too large for FP16 alone.
        ("forward", "aten.div.Tensor", "inf", [taken(1, 1), taken(0, 1)], "nan-in-forward"),
        ("forward", "aten.div.Tensor", "inf", [taken(1, 1), taken(1e-6, 1)], "forward-overflow"),
        ("forward", "aten.log.default", "inf", [taken(0.0, 1.0)], "nan-in-forward"),
        ("backward", "aten.div.Tensor", "inf", [taken(1, 1), taken(0, 1)], "nan-in-backward"),
    ],
)
def test_the_rule_of_an_origin(tmp_path, phase, operation, value, inputs, rule):
    event = origin(phase=phase, operation=operation, value=value, inputs=inputs, tensor="batch[0]")
    steps = [Step({"loss": math.nan if n >= AT else 1.0}) for n in range(8)]
    (only,) = found(make_run(tmp_path, INFOS, steps, events=[event]), *RULES).values()
    assert (only.rule, only.step, only.severity) == (rule, AT, "critical")


@pytest.mark.parametrize(
    ("phase", "operation", "inputs", "cure"),
    [
        ("loss", "aten.std.correction", [taken(-3.0, -3.0)], "correction=0"),
        ("forward", "aten.nll_loss_forward.default", [taken(-3.0, 0.0)], "ignore_index"),
        ("loss", "aten.mul.Tensor", [taken(0.0, 1.0)], "what this operation takes"),
        ("backward", "aten.div.Tensor", [taken(1, 1), taken(1e-42, 1)], "torch.log(x + eps)"),
    ],
)
def test_the_cure_of_an_operation(tmp_path, phase, operation, inputs, cure):
    event = origin(phase=phase, operation=operation, value="nan", inputs=inputs)
    steps = [Step({"loss": math.nan if n >= AT else 1.0}) for n in range(8)]
    (only,) = found(make_run(tmp_path, INFOS, steps, events=[event]), *RULES).values()
    assert cure in only.cure


@pytest.mark.parametrize("phase", ["none", "unknown"])
def test_an_origin_that_was_not_found_leaves_it_to_the_rows(tmp_path, phase):
    run = make_run(
        tmp_path, INFOS, rows_from("net.1:input"), events=[origin(phase=phase, note="why not")]
    )
    assert first_of(found(run, *RULES)).slot == "net.1:input"


def test_one_batch_that_a_scaler_skipped_is_a_warning(tmp_path):
    skipped = {"found_inf": True, "skipped": True, "loss_scale_before": 8.0, "loss": math.nan}
    steps = [Step(skipped if n == AT else {"loss_scale_before": 8.0}) for n in range(12)]
    event = origin(phase="data", tensor="batch[0]")
    (only,) = found(make_run(tmp_path, INFOS, steps, events=[event]), *RULES).values()
    assert (only.rule, only.severity) == ("nan-in-data", "warning")


def test_scalars_alone_say_what_they_know(tmp_path):
    steps = [Step({"loss": math.nan if n >= AT else 1.0}) for n in range(8)]
    (only,) = found(make_run(tmp_path / "a", [], steps), *RULES).values()
    assert only.rule == "nan-in-loss"
    assert "not recorded" in only.cause
    assert only.cure.startswith("`NumericsMonitor(amax_every_n_steps=1)`")
    steps = [Step({"grad_norm": math.inf if n >= AT else 1.0}) for n in range(8)]
    (only,) = found(make_run(tmp_path / "b", [], steps), *RULES).values()
    assert (only.rule, only.step) == ("nan-in-backward", AT)


def test_a_run_without_losses_has_no_nan_loss(tmp_path):
    assert found(make_run(tmp_path, [], [Step({"loss": None})] * 5), *RULES) == {}


@pytest.mark.parametrize(
    ("operation", "inputs", "pole"),
    [
        ("aten.div.Tensor", ({"low": 1.0, "high": 1.0}, {"low": -1.0, "high": 1.0}), True),
        ("aten.div.Tensor", ({"low": 1.0, "high": 1.0}, {"low": 0.5, "high": 1.0}), False),
        ("aten.div.Tensor", (), True),
        ("aten.rsqrt.default", ({"low": 0.0, "high": 1.0},), True),
        ("aten.mm.default", ({"low": 0.0, "high": 1.0},), False),
        ("", (), False),
    ],
)
def test_poles(operation, inputs, pole):
    assert Failure(0, "forward", "inf", operation=operation, inputs=inputs).at_a_pole is pole
