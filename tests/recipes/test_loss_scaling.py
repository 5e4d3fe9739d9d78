"""GradScaler's rule against the real GradScaler."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.recipes import next_loss_scale, skips_to_zero


class RealScaler:
    """`torch.amp.GradScaler` with an optimizer of one weight, fed gradients that are inf or 1."""

    def __init__(self, scale=65536.0, **options):
        self._weight = torch.nn.Parameter(torch.ones(()))
        self._optimizer = torch.optim.SGD([self._weight], lr=0.0)
        self._scaler = torch.amp.GradScaler("cpu", init_scale=scale, **options)
        self._scaler.scale(torch.ones(()))

    def load(self, growth_tracker):
        self._scaler.load_state_dict(
            self._scaler.state_dict() | {"_growth_tracker": growth_tracker}
        )

    def step(self, found_inf):
        self._weight.grad = torch.tensor(math.inf if found_inf else 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return self._scaler.get_scale(), self._scaler._get_growth_tracker()


@given(
    scale=st.floats(2.0**-149, 2.0**127, width=32),
    growth=st.sampled_from([2.0, 1.5, 1.0001, 16.0, 1e30]),
    backoff=st.sampled_from([0.5, 0.75, 0.1, 0.999]),
    interval=st.integers(1, 4),
    found=st.lists(st.booleans(), max_size=30),
)
@settings(max_examples=150, deadline=None)
def test_it_moves_as_the_real_one_does(scale, growth, backoff, interval, found):
    options = {"growth_factor": growth, "backoff_factor": backoff, "growth_interval": interval}
    real = RealScaler(scale, **options)
    tracker = 0
    for found_inf in found:
        scale, tracker = next_loss_scale(scale, tracker, found_inf, **options)
        assert (scale, tracker) == real.step(found_inf)


def test_the_defaults_are_the_real_ones():
    scaler = torch.amp.GradScaler("cpu")
    assert (scaler.get_growth_factor(), scaler.get_backoff_factor()) == (2.0, 0.5)
    interval = scaler.get_growth_interval()
    assert next_loss_scale(65536.0, interval - 2, False) == (65536.0, interval - 1)
    assert next_loss_scale(65536.0, interval - 1, False) == (131072.0, 0)
    assert next_loss_scale(65536.0, interval - 1, True) == (32768.0, 0)


def test_a_tracker_beyond_a_shortened_interval_never_grows_the_scale():
    real = RealScaler(8.0, growth_interval=3)
    real.load(growth_tracker=5)
    for tracker in (6, 7):
        assert next_loss_scale(8.0, tracker - 1, False, growth_interval=3) == (8.0, tracker)
        assert real.step(False) == (8.0, tracker)


def test_a_scale_that_would_leave_fp32_stays():
    assert next_loss_scale(2.0**127, 1999, False) == (2.0**127, 0)


def test_gradients_that_are_all_inf_end_at_zero_after_166_steps():
    real, scale, tracker, scales = RealScaler(), 65536.0, 0, []
    for _ in range(167):
        scale, tracker = next_loss_scale(scale, tracker, True)
        assert (scale, tracker) == real.step(True)
        scales.append(scale)
    told = {1: 32768.0, 16: 1.0, 40: 2.0**-24, 165: 2.0**-149, 166: 0.0, 167: 0.0}
    assert {steps: scales[steps - 1] for steps in told} == told
    assert [skips_to_zero(s) for s in [65536.0, *scales]] == [*range(166, -1, -1), 0]


@given(scale=st.floats(0.0, 2.0**127, width=32), backoff=st.floats(0.0, 0.5))
@settings(max_examples=100, deadline=None)
def test_zero_comes_with_the_last_skip_and_not_before(scale, backoff):
    skips = skips_to_zero(scale, backoff)
    for left in range(skips, 0, -1):
        assert scale > 0, f"{left} skips early"
        scale, _ = next_loss_scale(scale, 0, True, backoff_factor=backoff)
    assert scale == 0.0


@pytest.mark.parametrize("backoff", [0.5000001, 0.75, 0.9])
def test_a_gentler_backoff_never_ends_at_zero(backoff):
    assert skips_to_zero(65536.0, backoff) is None
    real = RealScaler(2.0**-147, backoff_factor=backoff)
    assert [real.step(True)[0] for _ in range(20)][-1] > 0.0


@pytest.mark.parametrize(
    ("scale", "backoff"), [(65536.0, 1.0), (math.inf, 0.5), (math.nan, 0.5), (1.0, math.nan)]
)
def test_what_does_not_fall_never_ends_at_zero(scale, backoff):
    assert skips_to_zero(scale, backoff) is None


def test_zero_is_there_already():
    assert skips_to_zero(0.0, 1.0) == 0
