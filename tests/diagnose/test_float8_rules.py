"""What casts to FP8 clamp and flush, as libraries report it and as pairs of tensors show it."""

import pytest
import torch
from family_builders import cast_of, course, evidence, found, noise, slot, tensor_rows

from numwatch.diagnose.rules.float8 import RULES, fp8_flushing, fp8_saturation
from numwatch.snapshot import Snapshot, StepScalars

LIMIT = 448.0


def casting(directory, role, casts, n=1000):
    """A slot that a library casts, which does so at each step."""
    info = slot("fc", role, 1, fmt="e4m3")
    steps = [
        Snapshot(step, StepScalars(), tensor_rows([(info, noise(n, step), cast)]))
        for step, cast in enumerate(casts)
    ]
    return evidence(directory, steps, [info])


@pytest.mark.parametrize("role", ["input", "grad_output"])
def test_a_share_saturated_by_a_library(tmp_path, role):
    casts = [cast_of()] * 2 + [cast_of(saturated=20, scale=64.0)] * 3
    (finding,) = found(fp8_saturation, casting(tmp_path, role, casts))
    assert (finding.severity, finding.step, finding.slot) == ("warning", 2, f"fc:{role}")
    share, scale = finding.evidence
    assert (share.value, scale.value) == (pytest.approx(0.02), 64.0)


def test_one_clipped_outlier_or_two_steps_are_none(tmp_path):
    outlier = casting(tmp_path / "a", "input", [cast_of(saturated=1)] * 5, n=4000)
    assert found(fp8_saturation, outlier) == []
    twice = casting(tmp_path / "b", "input", [cast_of(saturated=99)] * 2)
    assert found(fp8_saturation, twice) == []


def test_flushed_gradients_are_a_warning_and_flushed_activations_an_info(tmp_path):
    casts = [cast_of(flushed=300)] * 3
    (finding,) = found(fp8_flushing, casting(tmp_path / "a", "grad_output", casts))
    assert (finding.severity, finding.step) == ("warning", 0)
    assert finding.evidence[0].value == pytest.approx(0.3)
    assert "E5M2" in finding.cure
    (finding,) = found(fp8_flushing, casting(tmp_path / "b", "input", casts))
    assert finding.severity == "info"


def test_what_healthy_runs_flush_is_nothing(tmp_path):
    assert found(fp8_flushing, casting(tmp_path, "grad_output", [cast_of(flushed=5)] * 5)) == []


def casting_module(directory, scales, sigma=1.0):
    """A module that casts normal values to E4M3 by its own scale, at each step."""
    before = slot("cast", "input", 1)
    after = slot("cast", "output", 2, dtype="float8_e4m3fn", fmt="e4m3")
    steps = []
    for step, scale in enumerate(scales):
        x = noise(4096, step, sigma).float()
        low = (x * scale).clamp(-LIMIT, LIMIT).to(torch.float8_e4m3fn)
        rows = tensor_rows([(before, x, None), (after, low, None)])
        steps.append(Snapshot(step, StepScalars(), rows))
    return evidence(directory, steps, [before, after])


def test_a_scale_that_no_longer_fits_shows_in_the_tensors(tmp_path):
    fits = LIMIT / 5.0
    (finding,) = found(
        fp8_saturation, casting_module(tmp_path, [fits] * 2 + [4 * fits, 8 * fits, 8 * fits])
    )
    assert (finding.severity, finding.step, finding.slot) == ("warning", 2, "cast:output")
    after, before, amax = finding.evidence
    assert before.value > 1.25 * after.value
    assert amax.value == pytest.approx(float(noise(4096, 2).abs().max()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, LIMIT / 5.0])
def test_a_scale_that_fits_never_saturates(tmp_path, scale):
    assert found(fp8_saturation, casting_module(tmp_path, [scale] * 4)) == []


def test_a_scale_far_too_small_flushes(tmp_path):
    # 2^-10 is the cut; of normal values 68 % are smaller than their deviation.
    seen = casting_module(tmp_path, [2.0**-10] * 4)
    (finding,) = found(fp8_flushing, seen)
    assert (finding.severity, finding.slot) == ("warning", "cast:output")
    assert finding.evidence[0].value == pytest.approx(0.683, abs=0.03)


def test_without_tensors_nothing_is_said(tmp_path):
    seen = evidence(tmp_path, course([1.0]))
    assert [found(rule, seen) for rule in RULES] == [[], []]
