"""The end of a loss scale, announced long before it comes, and not where there is none."""

import pytest

from numwatch.recipes import Collapse, CollapseAlarm, next_loss_scale


def announced(found, scale=65536.0, alarm=None, **options):
    """What the alarm says of a GradScaler whose steps found an inf or not."""
    alarm = alarm or CollapseAlarm()
    said, tracker = [], 0
    for step, found_inf in enumerate(found):
        before = scale
        scale, tracker = next_loss_scale(scale, tracker, found_inf, **options)
        said += [alarm.see(step, before, scale, found_inf)]
    return [collapse for collapse in said if collapse]


def test_all_inf_is_announced_once_and_156_steps_ahead():
    assert announced([True] * 300) == [Collapse(9, 64.0, 10, zero_at_step=165)]


@pytest.mark.parametrize("backoff", [0.5, 0.25, 0.1])
def test_the_step_of_zero_is_that_of_the_real_rule(backoff):
    collapse = announced([True] * 10, backoff_factor=backoff)[0]
    scale, steps = 65536.0, 0
    while scale:
        scale, _ = next_loss_scale(scale, 0, True, backoff_factor=backoff)
        steps += 1
    assert collapse.zero_at_step == steps - 1


def test_a_gentle_backoff_never_reaches_zero():
    assert announced([True] * 10, backoff_factor=0.75) == [
        Collapse(9, 65536.0 * 0.75**10, 10, zero_at_step=None)
    ]


@pytest.mark.parametrize("skips", [1, 5, 9])
def test_a_normal_start_is_no_collapse(skips):
    assert announced([True] * skips + [False] * 50 + [True]) == []


@pytest.mark.parametrize("scale", [2.0**32, 2.0**24])
def test_a_search_from_a_very_high_scale_is_none_either(scale):
    found, alarm = [], CollapseAlarm()
    reached = scale
    while reached > 2.0**14:
        found.append(True)
        reached /= 2
    assert announced([*found, False], scale, alarm) == []
    # Going on from there is.
    assert len(announced([True] * 12, reached, alarm)) == 1


def test_single_skips_between_growths_are_none():
    assert announced(([False] * 20 + [True]) * 50, growth_interval=20) == []


def test_skips_between_good_steps_that_take_the_scale_below_1_are_one():
    said = announced([True, True, False] * 20, growth_interval=2000)
    # 17 skips from 65536: the first of the ninth round.
    assert said == [Collapse(step=24, scale=0.5, skipped_in_a_row=1, zero_at_step=24 + 149)]


def test_a_scale_that_swings_about_1_is_announced_once():
    assert len(announced(([True] + [False] * 5) * 40, 1.0, growth_interval=5)) == 1


def test_a_second_collapse_is_announced_too():
    once = [True] * 12 + [False] * 3
    assert [collapse.step for collapse in announced(once * 2, 2.0**16)] == [9, 19]


def test_after_a_scale_below_1_only_a_recovered_one_can_collapse_again():
    down = [True] * 20
    assert len(announced([*down, False, *down])) == 1
    grown = [False] * 7  # 2^-4 to 2^3
    said = announced([*down, *grown, *down], growth_interval=1)
    assert [collapse.step for collapse in said] == [9, 30]


def test_a_scaler_that_needs_several_overflows_before_it_backs_off():
    alarm = CollapseAlarm()
    said = []
    for step in range(20):
        before = 65536.0 / 2 ** (step // 2)
        after = 65536.0 / 2 ** ((step + 1) // 2)
        said += [alarm.see(step, before, after, skipped=True)]
    assert [c and (c.step, c.scale) for c in said if c] == [(9, 2048.0)]


@pytest.mark.parametrize("scale", [1024.0, 0.5])
def test_a_static_scale_cannot_collapse(scale):
    alarm = CollapseAlarm()
    assert not any(alarm.see(step, scale, scale, skipped=True) for step in range(50))


def test_a_scale_set_by_hand_is_no_backoff():
    assert CollapseAlarm().see(0, 65536.0, 0.5, skipped=False) is None


def test_a_run_resumed_at_zero_is_told_at_once():
    alarm = CollapseAlarm()
    assert alarm.see(7, 0.0, 0.0, skipped=True) == Collapse(7, 0.0, 1, zero_at_step=7)
    assert alarm.see(8, 0.0, 0.0, skipped=True) is None
