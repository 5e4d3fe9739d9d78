"""Spikes and drifts, and the noise that is neither."""

import math

import numpy as np
import pytest
from family_builders import course, evidence, found
from hypothesis import given
from hypothesis import strategies as st

from numwatch.diagnose.rules.loss import (
    RULES,
    gradient_norm_drift,
    gradient_norm_spike,
    loss_spike,
)
from numwatch.diagnose.spikes import past, spikes


def falling(n=200, seed=0, sigma=0.02):
    noise = np.random.default_rng(seed).normal(0, sigma, n)
    return 1.0 + 2.0 * np.exp(-np.arange(n) / 20) + noise


def test_a_spike_that_does_not_come_back(tmp_path):
    losses = falling()
    losses[150:] += 1.5
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert (finding.severity, finding.step) == ("warning", 150)
    assert "did not come back" in finding.cause


def test_a_run_that_ends_far_above_its_start_has_diverged(tmp_path):
    losses = falling()
    losses[150:] = 1e4
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert (finding.severity, finding.step) == ("critical", 150)


def test_a_spike_followed_by_nan_has_not_come_back(tmp_path):
    losses = falling()
    losses[150:152] = 2.5
    losses[152:] = math.nan
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert (finding.severity, finding.step) == ("warning", 150)


def test_a_nan_does_not_end_the_statistic(tmp_path):
    losses = falling()
    losses[100] = math.nan
    losses[101] = math.inf
    losses[150:] += 1.5
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert finding.step == 150


def test_one_bad_batch_is_nothing_and_a_short_bump_an_info(tmp_path):
    losses = falling()
    losses[150] += 1.5
    assert found(loss_spike, evidence(tmp_path / "a", course(losses.tolist()))) == []
    losses[151:154] += 1.5
    (finding,) = found(loss_spike, evidence(tmp_path / "b", course(losses.tolist())))
    assert (finding.severity, finding.step) == ("info", 150)


def test_a_bump_to_where_the_run_began_is_a_warning(tmp_path):
    losses = falling()
    losses[150:154] = 4.0
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert (finding.severity, finding.step) == ("warning", 150)


def test_a_run_that_diverges_from_the_start(tmp_path):
    losses = 4.6 + 3.0 * np.minimum(np.arange(100), 10.0)
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert (finding.severity, finding.step) == ("critical", 2)


def test_a_run_thrown_about_by_its_first_update_has_diverged(tmp_path):
    """From 0.7 to 1e13 in one step, and down to a million at the end."""
    losses = np.concatenate([[0.7], np.geomspace(1e13, 1e6, 49)])
    (finding,) = found(loss_spike, evidence(tmp_path, course(losses.tolist())))
    assert (finding.severity, finding.step) == ("critical", 1)


def test_a_large_first_loss_and_a_rough_start_are_healthy(tmp_path):
    losses = falling()
    losses[0] = 100.0
    losses[5:20] *= 3.0
    assert found(loss_spike, evidence(tmp_path, course(losses.tolist()))) == []


def test_a_norm_spike_alone_is_an_info_and_with_the_loss_a_warning(tmp_path):
    losses, norms = falling(), np.exp2(np.random.default_rng(1).normal(0, 0.1, 200))
    norms[150:] *= 64.0
    steps = course(losses.tolist(), norms.tolist())
    (finding,) = found(gradient_norm_spike, evidence(tmp_path / "a", steps))
    assert (finding.severity, finding.step) == ("info", 150)
    losses[152:] += 1.5
    steps = course(losses.tolist(), norms.tolist())
    (finding,) = found(gradient_norm_spike, evidence(tmp_path / "b", steps))
    assert (finding.severity, finding.step) == ("warning", 150)
    assert finding.evidence[0].value == pytest.approx(norms[150])


def test_a_norm_that_doubles_or_is_not_measured_says_nothing(tmp_path):
    norms = np.exp2(np.random.default_rng(1).normal(0, 0.01, 200))
    norms[150:] *= 2.0
    norms[::2] = math.nan
    norms[1] = 0.0
    norms[3] = math.inf
    steps = course([1.0] * 200, norms.tolist())
    assert found(gradient_norm_spike, evidence(tmp_path, steps)) == []


@pytest.mark.parametrize(("rises", "severity"), [(True, "warning"), (False, "info")])
def test_a_norm_that_drifts_up(tmp_path, rises, severity):
    n = 400
    norms = np.exp2(np.arange(n) / 80 + np.random.default_rng(0).normal(0, 0.2, n))
    losses = falling(n) + (np.arange(n) / n if rises else 0.0)
    steps = course(losses.tolist(), norms.tolist())
    (finding,) = found(gradient_norm_drift, evidence(tmp_path, steps))
    assert finding.severity == severity
    assert finding.evidence[0].value > 4 * finding.evidence[1].value


def test_a_norm_that_only_wanders_does_not_drift(tmp_path):
    n = 400
    for name, norms in (
        ("flat", np.exp2(np.random.default_rng(0).normal(0, 0.5, n))),
        ("doubling", np.exp2(np.arange(n) / n)),
        ("falling", np.exp2(-np.arange(n) / 80)),
    ):
        steps = course(falling(n).tolist(), norms.tolist())
        assert found(gradient_norm_drift, evidence(tmp_path / name, steps)) == []


def test_no_scalars_no_findings(tmp_path):
    seen = evidence(tmp_path, course([None] * 5))
    assert [found(rule, seen) for rule in RULES] == [[]] * 3


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 10.0))
def test_normal_noise_has_no_confirmed_spike(seed, sigma):
    values = 5.0 + sigma * np.random.default_rng(seed).normal(size=600)
    found_spikes = spikes(np.arange(600), values, warm_up=64)
    assert not any(spike.confirmed for spike in found_spikes)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=64, max_size=300),
    st.integers(-6, 6),
    st.lists(st.integers(0, 299), max_size=5),
)
def test_scores_follow_the_unit_and_leave_nan_out(values, exponent, holes):
    values = np.array(values)
    steps = np.arange(len(values))
    plain = spikes(steps, values, warm_up=16)
    scaled = spikes(steps, values * 2.0**exponent, warm_up=16)
    # Tiny medians meet the least spread, which has no unit.
    assert [s.step for s in plain] == [s.step for s in scaled]
    holed = np.insert(values, [min(h, len(values)) for h in holes], math.nan)
    median, spread = past(values, 16)
    again, same = past(holed[np.isfinite(holed)], 16)
    np.testing.assert_array_equal(median, again)
    np.testing.assert_array_equal(spread, same)


def test_the_spread_of_many_normal_values_is_their_deviation():
    values = np.random.default_rng(0).normal(3.0, 2.0, 5000)
    median, spread = past(values, 128)
    assert np.isnan(median[:128]).all()
    assert np.nanmean(median) == pytest.approx(3.0, abs=0.1)
    assert np.nanmean(spread) == pytest.approx(2.0, rel=0.05)


def test_batches_of_unlike_weights_have_not_diverged(tmp_path):
    losses = np.where(np.arange(100) % 5 == 2, 0.4, 10.0) + 0.1 * np.sin(np.arange(100))
    assert found(loss_spike, evidence(tmp_path, course(losses.tolist()))) == []
