"""Rules about the forward, over series in closed form."""

import math

import numpy as np
import pytest
import torch
from diagnosis_builders import Step, found, make_run, slot, spread
from hypothesis import given
from hypothesis import strategies as st

from numwatch.diagnose.confirm import first_confirmed, fit_line
from numwatch.diagnose.rules.forward import RULES
from numwatch.formats import get_format


def growing(directory, amax_of, n=40, fmt="fp16", dtype="float32", every=1, **changes):
    """One output whose amax is a function of the step; recorded on every so many steps."""
    info = slot("block.fc", "output", 1, dtype, fmt)
    steps = [
        Step(tensors={info.slot: spread(amax_of(i))} if i % every == 0 else {}) for i in range(n)
    ]
    for i, scalars in changes.pop("scalars", {}).items():
        steps[i].scalars |= scalars
    return make_run(directory, [info], steps, **changes)


@pytest.mark.parametrize("doubling", [3.0, 5.0])
def test_the_step_of_an_overflow_is_extrapolated(tmp_path, doubling):
    run = growing(tmp_path, lambda i: 2.0 ** (i / doubling), n=48)
    only = found(run, *RULES)["activation-growth"]
    figures = {figure.name: figure.value for figure in only.evidence}
    expected = math.log2(65504) * doubling
    assert figures["step of overflow, extrapolated"] == pytest.approx(expected, abs=1)
    assert figures["doublings in 100 steps"] == pytest.approx(100 / doubling, rel=1e-6)
    # It is foreseen from about half the way on.
    assert only.step == pytest.approx(expected / 2, abs=3)
    assert (only.severity, only.slot) == ("warning", "block.fc:output")


def test_rows_far_apart_give_the_same_step(tmp_path):
    run = growing(tmp_path, lambda i: 2.0 ** (i / 5), n=60, every=4)
    only = found(run, *RULES)["activation-growth"]
    figures = {figure.name: figure.value for figure in only.evidence}
    assert figures["step of overflow, extrapolated"] == pytest.approx(80, abs=1)


@pytest.mark.parametrize(
    "amax_of",
    [
        lambda i: 2.0 ** (i / 20),  # an overflow in 300 steps, after 40
        lambda i: 16.0 * (1 - math.exp(-i / 5)) + 0.5,  # levels out
        lambda i: 2.0**14 + i,  # large from the start
        lambda i: 2.0 ** (10 * (i % 2)),  # to and fro
        lambda i: 2.0 ** (12 - i / 4),  # falls
    ],
    ids=["slow", "levels out", "large", "to and fro", "falls"],
)
def test_what_is_no_growth(tmp_path, amax_of):
    assert found(growing(tmp_path, amax_of), *RULES) == {}


def test_a_wider_format_is_further_away(tmp_path):
    run = growing(tmp_path, lambda i: 2.0 ** (i / 4), fmt="bf16", precision="bf16-mixed")
    assert found(run, *RULES) == {}


def test_an_overflow_tells_how_fast_its_amax_grew(tmp_path):
    origin = {
        "phase": "forward",
        "module": "block.fc",
        "operation": "aten.addmm.default",
        "source": "m.py:1 in f: y",
        "value": "inf",
        "inputs": [],
    }
    run = growing(
        tmp_path,
        lambda i: 2.0 ** (i / 2.5),
        n=30,
        events=[("origin", 29, origin)],
        scalars={29: {"loss": math.nan}},
    )
    rules = found(run, *RULES)
    assert "doubling 40.0 times in 100 steps" in rules["forward-overflow"].cause
    assert rules["activation-growth"].step < rules["forward-overflow"].step == 29


@pytest.mark.parametrize(
    ("module", "kind", "role", "told"),
    [
        ("blocks.0.attn.softmax", "Softmax", "input", True),
        ("blocks.0.attention.scores", "Identity", "output", True),
        ("blocks.0.attn.softmax", "Softmax", "output", False),
        ("blocks.0.mlp.fc", "Linear", "output", False),
        ("head.softmax", "Softmax", "input", False),
    ],
)
@pytest.mark.parametrize("amax", [2e4, 5e3])
def test_attention_logits(tmp_path, module, kind, role, told, amax):
    info = slot(module, role, 0, "bfloat16", "bf16", kind)
    run = make_run(tmp_path, [info], [Step(tensors={info.slot: spread(amax)})] * 5)
    rules = found(run, *RULES)
    assert set(rules) == ({"attention-logit-growth"} if told and amax >= 1e4 else set())


@pytest.mark.parametrize(("peak", "told"), [(1e4, True), (10.0, False)])
def test_outliers_are_measured_against_the_elements_that_are_not_zero(tmp_path, peak, told):
    """A ReLU's zeros make no outlier of what is left."""
    values = torch.cat([torch.zeros(1 << 16), torch.ones(1 << 15), torch.tensor([peak])])
    info = slot("a", "output", 0, "float32", "fp16")
    rules = found(make_run(tmp_path, [info], [Step(tensors={info.slot: values})] * 4), *RULES)
    assert set(rules) == ({"outlier-channels"} if told else set())
    if told:
        rms = math.sqrt((peak**2 + (1 << 15)) / ((1 << 15) + 1))
        assert rules["outlier-channels"].evidence[0].value == pytest.approx(peak / rms, rel=1e-5)
        assert rules["outlier-channels"].severity == "info"


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_confirmed_is_the_first_stretch(flags, times):
    windows = [i for i in range(len(flags) - times + 1) if all(flags[i : i + times])]
    assert first_confirmed(np.array(flags, bool), times) == (windows[0] if windows else None)


@given(
    slope=st.floats(-8, 8),
    offset=st.floats(-8, 8),
    steps=st.lists(st.integers(0, 1000), min_size=2, unique=True).map(sorted),
)
def test_a_line_is_found_again(slope, offset, steps):
    x = np.array(steps)
    line = fit_line(x, slope * x + offset)
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.end == pytest.approx(slope * steps[-1] + offset, abs=1e-4)
    assert get_format("fp16").max == 65504
