import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS
from numwatch.recipes.loss_scalers import (
    GradScalerRecipe,
    MegatronScaler,
    StaticLossScale,
    loss_scales_over,
    overflow_limit,
)

FP16 = FORMATS["fp16"]
ILL = {"broken": np.ones(200, np.bool_)}


def course(recipe, amaxes, **beside):
    return loss_scales_over(recipe, np.array(amaxes, np.float64), FP16, **beside)


def test_gradients_that_are_all_inf():
    scales, skipped, doubtful = course(GradScalerRecipe(), [math.inf] * 200, **ILL)
    told = {0: 65536.0, 1: 32768.0, 16: 1.0, 40: 2.0**-24, 165: 2.0**-149, 166: 0.0, 199: 0.0}
    assert {step: scales[step] for step in told} == told
    assert skipped.all()
    assert not doubtful.any()


class FP16Gradient:
    """A weight whose gradient under a real scaler is a given number times the scale, in FP16."""

    def __init__(self, recipe):
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float32))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.scaler = torch.amp.GradScaler(
            "cpu",
            init_scale=recipe.init_scale,
            growth_factor=recipe.growth_factor,
            backoff_factor=recipe.backoff_factor,
            growth_interval=recipe.growth_interval,
        )

    def step(self, amax):
        scale = self.scaler.scale(torch.ones(())).item()
        with torch.no_grad():
            self.weight.zero_()  # a weight grown large would swallow a small update
        self.weight.grad = torch.tensor(amax * scale, dtype=torch.float64).half().float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return scale, self.weight.item() == 0.0


@given(
    recipe=st.builds(
        GradScalerRecipe,
        init_scale=st.sampled_from([65536.0, 1.0, 3.0]),
        growth_factor=st.sampled_from([2.0, 1.5]),
        backoff_factor=st.sampled_from([0.5, 0.7]),
        growth_interval=st.integers(1, 5),
    ),
    amaxes=st.lists(st.floats(2.0**-6, 2.0**18), min_size=1, max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_it_goes_as_a_real_grad_scaler_does(recipe, amaxes):
    real = FP16Gradient(recipe)
    told = [real.step(amax) for amax in amaxes]
    scales, skipped, _ = course(recipe, amaxes)
    assert list(zip(scales, skipped, strict=True)) == told


def test_the_limit_is_where_fp16_rounds_to_inf():
    limit = overflow_limit(FP16)
    assert limit == 65520.0
    assert torch.tensor(limit).half().isinf()
    assert torch.nextafter(torch.tensor(limit), torch.tensor(0.0)).half().isfinite()
    assert overflow_limit(FORMATS["e5m2"]) == 61440.0


def test_megatron_backs_off_when_its_hysteresis_is_spent_and_good_steps_give_none_back():
    recipe = MegatronScaler(initial_scale=16.0, growth_interval=3, hysteresis=2)
    ill = [True, False, True, True, False, False, False, True, True]
    scales, skipped, _ = course(recipe, [1.0] * 9, broken=np.array(ill))
    assert scales.tolist() == [16, 16, 16, 8, 4, 4, 4, 8, 8]
    assert skipped.tolist() == ill
    assert recipe.step(recipe.start(), overflow=True).patience == 1


def test_megatron_has_a_floor_and_no_ceiling():
    scales, _, _ = course(MegatronScaler(), [math.inf] * 200, **ILL)
    assert scales[:3].tolist() == [2.0**32, 2.0**32, 2.0**31]
    assert scales[33] == scales[-1] == 1.0
    grown, skipped, _ = course(MegatronScaler(growth_interval=1), [2.0**-140] * 200)
    assert grown[95] == 2.0**127
    assert np.isinf(grown[96:]).all()
    assert skipped[96:].all()


def test_megatron_is_gradscaler_with_hysteresis_1_and_no_floor_met():
    ill = torch.rand(300) < 0.2
    options = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 4}
    one = MegatronScaler(initial_scale=2.0**60, hysteresis=1, min_scale=2.0**-100, **options)
    other = GradScalerRecipe(init_scale=2.0**60, **options)
    found = [course(each, [2.0**-150] * 300, broken=ill.numpy())[0] for each in (one, other)]
    assert (found[0] == found[1]).all()


def test_a_static_scale_skips_and_stays():
    scales, skipped, _ = course(StaticLossScale(1024.0), [1.0, 64.0, 63.9])
    assert scales.tolist() == [1024.0] * 3
    assert skipped.tolist() == [False, True, False]


def test_what_is_known_of_a_step_decides_it_and_the_rest_is_in_doubt():
    recipe = StaticLossScale(1024.0)
    nan = math.nan
    _, skipped, doubtful = course(
        recipe,
        [80.0, 1.0, 70.0, nan, nan, 70.0],
        floors=np.array([80.0, 64.0, 0.0, nan, 65.0, 0.0]),
        ceilings=np.array([80.0, math.inf, 63.0, nan, math.inf, 100.0]),
    )
    assert skipped.tolist() == [True, True, False, False, True, True]
    assert doubtful.tolist() == [False, False, False, True, False, True]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StaticLossScale(0.0), "static-loss: scale is positive and finite; got 0.0"),
        (lambda: GradScalerRecipe(growth_factor=1.0), "growth_factor above 1"),
        (lambda: GradScalerRecipe(backoff_factor=1.0), "backoff_factor between 0 and 1"),
        (lambda: MegatronScaler(growth_interval=0), "growth_interval of 1 or more"),
        (lambda: MegatronScaler(initial_scale=1.0, min_scale=2.0), "min_scale up to initial_scale"),
        (lambda: MegatronScaler(hysteresis=0), "hysteresis of 1 or more"),
    ],
)
def test_what_is_no_scaler_is_refused(make, text):
    with pytest.raises(NumwatchError, match=text):
        make()
