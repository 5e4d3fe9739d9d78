"""Updates that are lost, told apart from those that are deferred."""

import pytest
from family_builders import course, evidence, found, slot, update

from numwatch.diagnose.rules.updates import learning_rate_below_resolution, lost_updates
from numwatch.snapshot import Snapshot, StepScalars


def run(directory, entries, steps=5, lr=None, infos=()):
    """The same updates at every step, at a learning rate for each."""
    rates = lr or [1e-3] * steps
    return evidence(
        directory,
        [
            Snapshot(step, StepScalars(loss=1.0, lr=rate), updates=tuple(entries))
            for step, rate in enumerate(rates)
        ],
        infos,
    )


def test_a_large_share_lost_is_a_warning_and_names_the_parameter(tmp_path):
    seen = run(tmp_path, [update("a.weight", 0.9, 0.1), update("b.weight", 0.1, 1.0)])
    (finding,) = found(lost_updates, seen)
    assert (finding.severity, finding.step, finding.slot) == ("warning", 0, "a.weight:update")
    assert finding.evidence[0].value == pytest.approx(0.5)
    assert 'precision="bf16-mixed"' in finding.cure
    assert "BF16" in finding.cause
    assert found(learning_rate_below_resolution, seen) == []


def test_parameters_count_by_their_elements_not_by_their_samples(tmp_path):
    small_and_large = [update("ln.weight", 1.0, 0.0, numel=100), update("fc.weight", 0.0, 1.0)]
    seen = run(tmp_path / "a", small_and_large)
    assert found(lost_updates, seen)[0].severity == "warning"
    large = update("fc.weight", 0.0, 1.0, numel=10_000)
    (finding,) = found(lost_updates, run(tmp_path / "b", [small_and_large[0], large]))
    assert (finding.severity, finding.slot) == ("info", "ln.weight:update")


def test_nearly_everything_lost_is_a_standstill_and_not_told_twice(tmp_path):
    seen = run(tmp_path, [update("a.weight", 0.99, 0.01), update("b.weight", 0.98, 0.02)])
    (finding,) = found(learning_rate_below_resolution, seen)
    assert (finding.severity, finding.step, finding.slot) == ("critical", 0, "a.weight:update")
    assert finding.others == ("b.weight:update",)
    assert finding.evidence[-1].value == 1e-3
    assert found(lost_updates, seen) == []


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_healthy_share_is_no_finding(tmp_path, share):
    seen = run(tmp_path, [update("a.weight", share, 1.0)])
    assert found(lost_updates, seen) == found(learning_rate_below_resolution, seen) == []


def test_deferred_updates_are_no_finding(tmp_path):
    seen = run(tmp_path, [update("a.weight", 0.99, 0.01, lost=False)])
    assert found(lost_updates, seen) == found(learning_rate_below_resolution, seen) == []


def test_two_steps_are_no_alarm_and_zero_updates_do_not_count(tmp_path):
    assert found(lost_updates, run(tmp_path / "a", [update("a.weight", 0.9, 0.1)], 2)) == []
    nothing = update("a.weight", None, None, nonzero=0)
    assert found(lost_updates, run(tmp_path / "b", [nothing])) == []


def test_a_warm_up_and_the_end_of_a_schedule_are_not_judged(tmp_path):
    warm_up = [1e-5 * step for step in range(20)]
    seen = run(tmp_path / "a", [update("a.weight", 0.99, 0.01)], lr=warm_up)
    assert found(learning_rate_below_resolution, seen) == []
    stays = warm_up + [warm_up[-1]] * 5
    seen = run(tmp_path / "b", [update("a.weight", 0.99, 0.01)], lr=stays)
    assert found(learning_rate_below_resolution, seen)[0].step == 19
    end = [1e-3 - 1e-5 * step for step in range(90)]
    steps = [
        Snapshot(
            step,
            StepScalars(lr=rate),
            updates=(update("a.weight", 0.99, 0.01) if step > 60 else update("a.weight", 0.1, 1),),
        )
        for step, rate in enumerate(end)
    ]
    assert found(learning_rate_below_resolution, evidence(tmp_path / "c", steps)) == []


def test_order_is_that_of_the_parameters_module(tmp_path):
    infos = [slot("b", "input", 1), slot("a", "input", 2)]
    seen = run(
        tmp_path, [update("a.weight", 0.99, 0.0), update("b.weight", 0.99, 0.0)], infos=infos
    )
    (finding,) = found(learning_rate_below_resolution, seen)
    assert (finding.slot, finding.order) == ("b.weight:update", 1.0)


def test_a_record_without_updates_has_no_finding(tmp_path):
    seen = evidence(tmp_path, course([1.0, 0.9]))
    assert found(lost_updates, seen) == found(learning_rate_below_resolution, seen) == []
