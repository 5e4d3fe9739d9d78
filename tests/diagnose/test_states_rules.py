"""Eps, decay and second moments that go wrong, and those that are healthy."""

import math

import pytest
from family_builders import course, evidence, found, moment

from numwatch.diagnose.rules.states import (
    RULES,
    eps_above_sqrt_v,
    eps_zero,
    low_precision_state,
    rms_spike,
    state_never_decays,
)
from numwatch.snapshot import Snapshot, StepScalars


def run(directory, states, steps=5, losses=None):
    losses = losses or [1.0] * steps
    return evidence(
        directory,
        [
            Snapshot(step, StepScalars(loss=loss), states=tuple(states) if step < steps else ())
            for step, loss in enumerate(losses)
        ],
    )


def test_eps_that_fp16_rounds_to_0_is_critical_at_once(tmp_path):
    states = [moment(name, "float16", eps_stored=0.0, vanished=0.9) for name in ("b", "a")]
    (finding,) = found(eps_zero, run(tmp_path, states, 1, [2.3, math.nan, math.nan]))
    assert (finding.severity, finding.step, finding.slot) == ("critical", 0, "a:exp_avg_sq")
    assert finding.others == ("b:exp_avg_sq",)
    assert [figure.value for figure in finding.evidence] == [0.0, 1e-8, 0.9]


def test_a_run_that_goes_on_has_survived_it(tmp_path):
    lost = moment("a", "float16", eps_stored=0.0)
    (finding,) = found(eps_zero, run(tmp_path / "a", [lost], 3, [1.0] * 30))
    assert finding.severity == "warning"
    chosen = moment("a", eps=0.0, eps_stored=0.0)
    (finding,) = found(eps_zero, run(tmp_path / "b", [chosen], 3, [1.0] * 30))
    assert finding.severity == "info"
    assert "Adam(eps=" in finding.cure


def test_eps_above_most_second_moments(tmp_path):
    seen = run(tmp_path, [moment("a", eps=0.1, eps_stored=0.1, below_eps=0.9)])
    (finding,) = found(eps_above_sqrt_v, seen)
    assert (finding.severity, finding.step, finding.slot) == ("warning", 0, "a:exp_avg_sq")
    assert "eps=0.1" in finding.cause


def test_one_bias_among_many_is_an_info(tmp_path):
    others = [moment(f"fc{i}", below_eps=0.0) for i in range(4)]
    (finding,) = found(
        eps_above_sqrt_v, run(tmp_path, [moment("key.bias", below_eps=1.0), *others])
    )
    assert finding.severity == "info"


def test_small_moments_of_a_run_that_has_converged_are_an_info(tmp_path):
    losses = [1.0] * 5 + [1e-4] * 20
    (finding,) = found(eps_above_sqrt_v, run(tmp_path, [moment("a", below_eps=1.0)], 5, losses))
    assert finding.severity == "info"


def test_it_must_be_confirmed(tmp_path):
    assert found(eps_above_sqrt_v, run(tmp_path, [moment("a", below_eps=1.0)], 2)) == []


def test_a_decay_that_bf16_rounds_to_1(tmp_path):
    (finding,) = found(
        state_never_decays, run(tmp_path, [moment("a", "bfloat16", decay_stored=1.0)])
    )
    assert (finding.severity, finding.step) == ("warning", 0)
    assert "0.999, is 1 in bfloat16" in finding.cause
    kept = moment("a", "bfloat16", decay=0.95, decay_stored=0.94921875)
    assert found(state_never_decays, run(tmp_path / "b", [kept])) == []


def test_squares_that_fp16_flushes(tmp_path):
    (finding,) = found(low_precision_state, run(tmp_path, [moment("a", "float16", vanished=0.2)]))
    assert finding.evidence[0].value == 0.2
    wide = moment("a", "float32", vanished=0.2)
    assert found(low_precision_state, run(tmp_path / "b", [wide])) == []


def alarmed(directory, losses, alarms):
    """RMS_t of 1 but at some steps."""
    steps = [
        Snapshot(
            step,
            StepScalars(loss=loss),
            states=(moment("a", rms=alarms.get(step, 1.0)), moment("b", rms=0.9)),
        )
        for step, loss in enumerate(losses)
    ]
    return evidence(directory, steps)


@pytest.mark.parametrize("lead", [1, 4, 8])
def test_an_alarm_before_a_loss_spike_is_a_warning(tmp_path, lead):
    losses = [1.0 + 0.01 * (step % 5) for step in range(100)]
    losses[90:] = [5.0] * 10
    (finding,) = found(rms_spike, alarmed(tmp_path, losses, {90 - lead: 6.0, 40: 3.0}))
    assert (finding.severity, finding.step, finding.slot) == ("warning", 90 - lead, "a:exp_avg_sq")
    assert f"spiked {lead} steps later" in finding.cause
    assert "AdamW(betas=(0.9, 0.95))" in finding.cure


@pytest.mark.parametrize("at", [81, 90, 95])
def test_an_alarm_too_early_or_too_late_is_an_info(tmp_path, at):
    losses = [1.0 + 0.01 * (step % 5) for step in range(100)]
    losses[90:] = [5.0] * 10
    (finding,) = found(rms_spike, alarmed(tmp_path, losses, {at: 6.0}))
    assert (finding.severity, finding.step) == ("info", at)


def test_below_the_alarm_nothing_is_said(tmp_path):
    assert found(rms_spike, alarmed(tmp_path, [1.0] * 20, {5: 2.29})) == []


def test_healthy_state_and_no_state_say_nothing(tmp_path):
    healthy = run(tmp_path / "a", [moment("a", below_eps=0.03, vanished=0.0, rms=1.2)])
    nothing = evidence(tmp_path / "b", course([1.0]))
    assert not [each for rule in RULES for seen in (healthy, nothing) for each in found(rule, seen)]
