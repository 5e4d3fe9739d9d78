"""Rules about the loss scale, over scales and gradients chosen by hand."""

import math

import pytest
import torch
from diagnosis_builders import Step, found, layers, make_run, slot, spread

from numwatch.diagnose.rules.loss_scale import RULES, persistent_skips
from numwatch.diagnose.rules.nonfinite import RULES as NONFINITE
from numwatch.recipes import next_loss_scale

INFOS = layers(2)
GRADIENTS = [info for info in INFOS if info.scaled]


def scalars(scale, *, skipped, loss=1.0, interval=0):
    after = scale / 2 if skipped else scale * (2 if interval else 1)
    return {
        "loss": loss,
        "loss_scale_before": scale,
        "loss_scale_after": after,
        "found_inf": skipped,
        "skipped": skipped,
    }


def descent(unscaled, *, steps=24, start=2.0**16, before=4, nan=False):
    """Gradients of an unscaled amax from step `before` on; infinite where FP16 ends."""
    scale, made = start, []
    for number in range(steps):
        amax = unscaled if number >= before else 2.0**-10
        values = spread(amax * scale, dtype=torch.float64)
        values = values.to(torch.float16)
        if nan and number >= before:
            values[0] = math.nan
        skipped = not bool(values.isfinite().all())
        made.append(Step(scalars(scale, skipped=skipped), {i.slot: values for i in GRADIENTS}))
        scale = scale / 2 if skipped else scale
    return made


@pytest.mark.parametrize("unscaled", [2.0**8, 2.0**12])
def test_a_fall_that_ends_where_gradients_fit_is_a_search(tmp_path, unscaled):
    """Nine skips and thirteen, of which ten in a row are a collapse while they last."""
    steps = descent(unscaled)
    skips = sum(step.scalars["skipped"] for step in steps)
    assert skips == math.log2(unscaled) + 1
    assert found(make_run(tmp_path, INFOS, steps), *RULES) == {}


def test_gradients_too_large_for_fp16(tmp_path):
    collapse = found(make_run(tmp_path, INFOS, descent(2.0**30)), *RULES)
    (only,) = collapse.values()
    assert (only.rule, only.severity) == ("loss-scale-collapse-overflow", "critical")
    assert only.step == 4
    assert only.slot == "net.1:grad_output"
    figures = {figure.name: figure for figure in only.evidence}
    assert figures["loss scale before"].value == 2.0**16
    assert figures["loss scale after"].value == 2.0**-4
    assert "bf16-mixed" in only.cure


def test_a_flat_amax_is_no_overflow(tmp_path):
    """The same fall, with a NaN among gradients of 2^-10, which FP16 holds at each scale."""
    (only,) = found(make_run(tmp_path, INFOS, descent(2.0**-10, nan=True)), *RULES).values()
    assert (only.rule, only.severity, only.step) == ("loss-scale-collapse-nan", "critical", 4)
    peak = next(f for f in only.evidence if f.name == "largest finite gradient in them, scaled")
    assert peak.value <= 2.0**6


def test_without_rows_the_last_amax_tells(tmp_path):
    def bare(steps):
        return [Step(s.scalars, s.tensors if i < 4 else {}) for i, s in enumerate(steps)]

    steps = bare(descent(2.0**-10, nan=True))
    assert set(found(make_run(tmp_path / "a", INFOS, steps), *RULES)) == {"loss-scale-collapse-nan"}
    for step in steps:
        step.tensors = {}
    nothing = found(make_run(tmp_path / "b", INFOS, steps), *RULES)
    assert set(nothing) == {"loss-scale-collapse-overflow"}


def test_a_nan_loss_is_no_overflow(tmp_path):
    steps = [Step(scalars(2.0 ** (16 - n), skipped=True, loss=math.nan), {}) for n in range(12)]
    (only,) = found(make_run(tmp_path, INFOS, steps), *RULES).values()
    assert only.rule == "loss-scale-collapse-nan"
    assert "loss" in only.cause


def scaler_run(interval, steps=200, limit=2.0**10, start=2.0**12):
    """What GradScaler does where every scale above a limit overflows."""
    scale, tracker, made = start, 0, []
    for _ in range(steps):
        skipped = scale > limit
        after, tracker = next_loss_scale(scale, tracker, skipped, growth_interval=interval)
        made.append(Step({**scalars(scale, skipped=skipped), "loss_scale_after": after}))
        scale = after
    return made


@pytest.mark.parametrize(("interval", "told"), [(2, True), (4, True), (20, False), (40, False)])
def test_skips_by_growth(tmp_path, interval, told):
    result = found(make_run(tmp_path, [], scaler_run(interval)), persistent_skips)
    assert bool(result) is told
    if told:
        only = result["persistent-skips"]
        assert "growth_interval=2000" in only.cure
        assert only.evidence[0].value == pytest.approx(1 / (interval + 1), abs=0.05)


def test_a_long_search_at_the_start_is_none(tmp_path):
    steps = scaler_run(100, start=2.0**32)
    assert sum(step.scalars["skipped"] for step in steps) >= 22
    assert found(make_run(tmp_path, [], steps), *RULES) == {}


def test_skips_without_growth_have_another_cure(tmp_path):
    steps = [Step(scalars(1024.0, skipped=n % 4 == 1)) for n in range(80)]
    only = found(make_run(tmp_path, [], steps), persistent_skips)["persistent-skips"]
    assert "growth_interval" not in only.cure


def underflow(scale, n=12, median=2.0**-20):
    """FP16 gradients of log-normal size, multiplied by a loss scale."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.randn(8192, generator=generator, dtype=torch.float64) * 2) * median
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4096)
    values = (sizes * signs * scale).to(torch.float16)
    given = scalars(scale, skipped=False)
    return [Step(given, {info.slot: values for info in GRADIENTS}) for _ in range(n)]


def test_a_scale_far_below_its_window(tmp_path):
    rules = found(make_run(tmp_path, INFOS, underflow(2.0**-4)), *RULES)
    only = rules["loss-scale-too-low"]
    assert only.severity == "warning"
    figures = {figure.name: figure.value for figure in only.evidence}
    assert figures["loss scale, log2"] == -4
    # amax is near 2^-20 * 2^7.5, so 65504 lies some 28 powers of two above it.
    assert 26 <= figures["largest loss scale without an overflow, log2"] <= 30
    assert figures["steps at a lower scale than the one proposed"] == 12
    assert "GradScaler(init_scale=2.0**24)" in only.cure


def test_a_scale_inside_its_window(tmp_path):
    assert found(make_run(tmp_path, INFOS, underflow(2.0**10)), *RULES) == {}


def test_it_is_about_fp16_alone(tmp_path):
    infos = [slot("net.0", "grad_output", 0, "bfloat16", "bf16")]
    steps = [Step(tensors={infos[0].slot: spread(1e-9)}) for _ in range(6)]
    assert found(make_run(tmp_path, infos, steps, precision="bf16-mixed"), *RULES) == {}


def test_an_infinity_that_outlives_the_scale_is_no_overflow(tmp_path):
    """log(0) in the loss: the gradients beside it fall with the scale, and the infinity stays."""
    steps = descent(2.0**-2, steps=32, nan=True)
    for number, step in enumerate(steps[4:]):
        for values in step.tensors.values():
            values[1] = math.inf
            if number > 20:
                values[:] = math.nan
    (only,) = found(make_run(tmp_path, INFOS, steps), *RULES).values()
    assert only.rule == "loss-scale-collapse-nan"


def test_a_lower_scale_that_heals_the_steps_had_overflowed(tmp_path):
    """A GAN's step: of a module called twice all gradients of one call are infinite, none large."""
    scale, steps = 2.0**16, []
    for _ in range(40):
        skipped = scale > 2.0**-8
        values = spread(scale * 2.0**-10, dtype=torch.float64).to(torch.float16)
        if skipped:
            values[0] = math.inf
        tensors = {info.slot: values for info in GRADIENTS}
        steps.append(Step({**scalars(scale, skipped=skipped), "loss": None}, tensors))
        scale = scale / 2 if skipped else scale
    (only,) = found(make_run(tmp_path, INFOS, steps), *RULES, *NONFINITE).values()
    assert (only.rule, only.severity) == ("loss-scale-collapse-overflow", "critical")
    assert "from 65536 to 2^-8" in only.cause
