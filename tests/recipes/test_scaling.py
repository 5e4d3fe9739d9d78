import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling, StaticScaling
from numwatch.recipes.stepping import floor_to_power_of_two, scales_over

E4M3, E5M2 = FORMATS["e4m3"], FORMATS["e5m2"]
FP32_MAX = FORMATS["fp32"].max
INF, NAN = math.inf, math.nan


def over(recipe, amaxes, fmt=E4M3):
    return scales_over(recipe, torch.tensor(amaxes), fmt).tolist()


def stepped(recipe, amaxes, fmt=E4M3):
    """The same, by the state machine; its first amax may be a batch."""
    amaxes = torch.as_tensor(amaxes, dtype=torch.float32)
    state, scales = recipe.start(amaxes[0]), []
    for amax in amaxes:
        scale, state = recipe.step(state, amax, fmt)
        scales.append(scale)
    return torch.stack(scales)


def reference(amaxes, history, margin, algorithm, largest):
    """Transformer Engine's fused update of one tensor, element by element in FP32."""
    window, scale, scales = [], np.float32(1.0), []
    for amax in map(np.float32, amaxes):
        scales.append(float(scale))
        if amax == 0:
            continue
        window = [*window, amax][-history:]
        chosen = np.float32(0.0)
        for each in window if algorithm == "max" else ():
            chosen = np.fmax(chosen, each)
        chosen = amax if algorithm == "most_recent" else chosen
        if chosen > 0 and np.isfinite(chosen):
            with np.errstate(over="ignore"):
                scale = min(np.float32(largest * 2.0**-margin) / chosen, np.float32(FP32_MAX))
    return scales


VECTORS = {
    ("max", 3): ([1, 2, 4, 1, 1, 1, 1, 1], [1, 448, 224, 112, 112, 112, 448, 448]),
    ("most_recent", 3): ([1, 2, 4, 1, 1, 1, 1, 1], [1, 448, 224, 112, 448, 448, 448, 448]),
    ("max", 1024): ([1, 1, 100, 1], [1, 448, 448, np.float32(448) / np.float32(100)]),
}


@pytest.mark.parametrize(("which", "vector"), VECTORS.items())
def test_delayed_vectors(which, vector):
    recipe = DelayedScaling(which[1], algorithm=which[0])
    amaxes, expected = vector
    assert over(recipe, [float(a) for a in amaxes]) == expected
    assert stepped(recipe, amaxes).tolist() == expected


# What the amaxes after the first step leave in force, one for each step after that.
EDGES = {
    "zero keeps the scale": ([2, 0, 0, 4], 3, "max", [224, 224, 224, 112]),
    "zero does not roll": ([4, 0, 0, 0, 1, 1, 1], 3, "max", [112] * 6 + [448]),
    "inf freezes until it has left": ([2, INF, 1, 1, 1], 3, "max", [224, 224, 224, 224, 448]),
    "inf keeps most_recent's for a step": ([2, INF, 1], 3, "most_recent", [224, 224, 448]),
    "max passes over NaN": ([2, NAN, 1, 1], 2, "max", [224, 224, 448, 448]),
    "NaN keeps most_recent's": ([2, NAN, 1], 3, "most_recent", [224, 224, 448]),
    "NaN alone keeps the scale": ([NAN, NAN, 1], 1, "max", [1, 1, 448]),
    "beyond FP32": ([2.0**-140, 1], 1, "max", [FP32_MAX, 448]),
}


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES)
def test_delayed_edges(case):
    amaxes, history, algorithm, expected = case
    recipe = DelayedScaling(history, algorithm=algorithm)
    seen = [float(a) for a in [*amaxes, 1]]
    assert over(recipe, seen) == [1, *expected]
    assert stepped(recipe, seen).tolist() == [1, *expected]


def test_margin_keeps_bits_free():
    assert over(DelayedScaling(margin=3), [1.0, 1.0], E5M2)[1] == 57344 / 8


def test_the_quotient_is_rounded_once():
    """Torch's `448 / x` is 448 times a rounded reciprocal."""
    amaxes = torch.rand(500) + 0.5
    exact = np.float32(448) / amaxes.numpy()
    assert (scales_over(DelayedScaling(1), amaxes, E4M3).numpy()[1:] == exact[:-1]).all()
    assert (stepped(DelayedScaling(1), amaxes).numpy()[1:] == exact[:-1]).all()
    assert ((448 / amaxes).numpy() != exact).any()


def test_a_function_of_ones_own_sees_slot_0_and_what_no_fused_kernel_would():
    seen = []

    def mean(history):
        seen.append(history[:, 0].tolist())
        return history.mean(dim=0)

    recipe = DelayedScaling(3, algorithm=mean)
    scales = stepped(recipe, [[3.0], [6.0], [0.0], [9.0]])[:, 0].tolist()
    assert seen == [[3, 0, 0], [6, 0, 3], [0, 3, 6], [9, 6, 0]]
    assert scales == pytest.approx([1, 448, 448 / 3, 448 / 3])
    assert over(recipe, [3.0, 6.0, 0.0, 9.0]) == scales


amax = st.one_of(
    st.floats(0.0, FP32_MAX, width=32),
    st.floats(2.0**-10, 2.0**10, width=32),
    st.sampled_from([0.0, 0.0, 1.0, 448.0, 2.0**-149, FP32_MAX, INF, NAN]),
)
histories = st.lists(amax, min_size=1, max_size=40)
delayed = st.builds(
    DelayedScaling,
    history=st.sampled_from([1, 2, 3, 5, 8, 16, 1024]),
    margin=st.integers(0, 16),
    algorithm=st.sampled_from(["max", "most_recent"]),
)
recipes = st.one_of(
    delayed,
    st.builds(CurrentScaling, power_of_two=st.booleans()),
    st.builds(StaticScaling, scale=st.floats(2.0**-149, FP32_MAX, width=32)),
)
formats = st.sampled_from([E4M3, E5M2, FORMATS["e2m1"], FORMATS["fp16"]])


@given(recipe=delayed, amaxes=histories, fmt=formats)
@settings(max_examples=300, deadline=None)
def test_delayed_is_the_fused_kernel_and_the_fast_way_the_state_machine(recipe, amaxes, fmt):
    expected = reference(amaxes, recipe.history, recipe.margin, recipe.algorithm, fmt.max)
    assert stepped(recipe, amaxes, fmt).tolist() == expected
    assert over(recipe, amaxes, fmt) == expected


@given(
    recipe=recipes, slots=st.lists(st.lists(amax, min_size=6, max_size=6), min_size=1), fmt=formats
)
@settings(max_examples=100, deadline=None)
def test_scales_are_positive_and_finite_and_a_batch_is_its_slots(recipe, slots, fmt):
    amaxes = torch.tensor(slots).T.contiguous()
    together = stepped(recipe, amaxes, fmt)
    assert ((together > 0) & together.isfinite()).all()
    assert torch.equal(together, torch.stack([stepped(recipe, one, fmt) for one in amaxes.T], 1))
    assert torch.equal(together, scales_over(recipe, amaxes, fmt))


@given(
    amaxes=st.lists(st.floats(2.0**-30, 2.0**30, width=32), min_size=1, max_size=60), data=st.data()
)
@settings(max_examples=100, deadline=None)
def test_a_longer_history_is_never_less_careful_than_a_shorter_one(amaxes, data):
    short, long = sorted(data.draw(st.tuples(st.integers(1, 64), st.integers(1, 64))))
    recent = np.array(over(DelayedScaling(short, algorithm="most_recent"), amaxes))
    first, second = (np.array(over(DelayedScaling(h), amaxes)) for h in (short, long))
    assert (second[1:] <= first[1:]).all()
    assert (first[1:] <= recent[1:]).all()


@given(recipe=delayed, amaxes=histories, data=st.data())
@settings(max_examples=150, deadline=None)
def test_unseen_runs_take_their_place_in_the_history(recipe, amaxes, data):
    """The scale is that of a history in which unseen runs had a negligible amax."""
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(amaxes), max_size=len(amaxes)))
    runs = np.cumsum(np.array(gaps) + 1) - 1
    found = recipe.over(np.array(amaxes, np.float32), E4M3, runs)
    window: list[tuple[float, float]] = []
    scale, rolled, last = 1.0, 0, -1
    for amax, run, got in zip(np.array(amaxes, np.float32), runs, found, strict=True):
        rolled += run - last - 1
        held = [a for at, a in window if at >= rolled - recipe.history] or [
            a for _, a in window[-1:]
        ]
        held = held if recipe.algorithm == "max" else [a for _, a in window[-1:]]
        chosen = np.float32(max((a for a in held if not math.isnan(a)), default=0.0))
        if chosen > 0 and np.isfinite(chosen):
            with np.errstate(over="ignore"):
                largest = np.float32(448 * 2.0**-recipe.margin)
                scale = float(min(largest / chosen, np.float32(FP32_MAX)))
        assert got == scale
        last = run
        if amax != 0:
            window.append((rolled, float(amax)))
            rolled += 1


@pytest.mark.parametrize("amax", [0.0, INF, NAN])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_current_scaling_of_no_amax_is_1(amax, power_of_two):
    assert over(CurrentScaling(power_of_two=power_of_two), [amax]) == [1.0]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_current_scaling_is_torchaos(power_of_two, dtype):
    utils = pytest.importorskip("torchao.float8.float8_utils")
    fmt = E4M3 if dtype is torch.float8_e4m3fn else E5M2
    amaxes = torch.exp2(40 * torch.rand(2000) - 20)
    amaxes = torch.cat([amaxes, torch.tensor([1e-13, 1e-12, 2.0**-149, 448.0, 2.0**100])])
    theirs = utils.amax_to_scale(amaxes, dtype, round_scales_to_power_of_2=power_of_two)
    assert torch.equal(scales_over(CurrentScaling(power_of_two), amaxes, fmt), theirs)


def test_powers_of_two_are_floored_where_log2_rounds_up():
    below = torch.nextafter(torch.tensor([2.0**20, 2.0**127, 1.0]), torch.tensor(0.0))
    assert floor_to_power_of_two(below).tolist() == [2.0**19, 2.0**126, 0.5]
    exact = torch.tensor([2.0**-126, 1.0, 2.0**127, INF])
    assert torch.equal(floor_to_power_of_two(exact), exact)
    assert floor_to_power_of_two(torch.tensor(NAN)).isnan()


def test_static_scaling_heeds_no_amax():
    assert over(StaticScaling(8.0), [0.0, INF, NAN, 3.0]) == [8.0] * 4


def test_empty_histories_have_no_scales():
    for recipe in (StaticScaling(), CurrentScaling(), DelayedScaling()):
        assert scales_over(recipe, torch.empty(0, 3), E4M3).shape == (0, 3)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_scale_beyond_fp32_is_infinite_as_torchao_s_is(power_of_two):
    """TF32 ends where FP32 does."""
    recipe, amaxes = CurrentScaling(power_of_two), np.array([1e-9, 1.0], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scales = recipe.over(amaxes, FORMATS["tf32"])
    assert scales[0] == INF
    assert np.array_equal(scales, stepped(recipe, amaxes, FORMATS["tf32"]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DelayedScaling(0), "a history of 1 to 1048576; got 0"),
        (lambda: DelayedScaling(10**20), "a history of 1 to 1048576; got 1000"),
        (lambda: DelayedScaling(margin=17), "margin is 0 to 16 bits; got 17"),
        (lambda: DelayedScaling(algorithm="min"), "max, most_recent or a function"),
        (lambda: StaticScaling(0.0), "positive and finite; got 0.0"),
        (lambda: StaticScaling(NAN), "positive and finite; got nan"),
        (lambda: StaticScaling(1e-60), "positive and finite; got 1e-60"),
    ],
)
def test_what_is_no_recipe_is_refused(make, text):
    with pytest.raises(NumwatchError, match=text):
        make()


def test_long_histories_of_many_slots_are_quick():
    """Step by step this would copy 1024 amaxes of each slot 2000 times."""
    amaxes = torch.rand(2000, 200) + 0.5
    found = scales_over(DelayedScaling(1024), amaxes, E4M3)
    (window, _) = torch.cummax(amaxes[:1024], dim=0)
    expected = np.float32(448) / window.numpy()
    assert (found[1:1025].numpy() == expected).all()


@pytest.mark.parametrize(
    ("recipe", "seen", "held"),
    [
        (DelayedScaling(3), [0, 1, 1, 1, 1], [0, 1, 3, 3, 3]),
        (DelayedScaling(1), [0, 1, 0, 1, 1], [0, 1, 1, 1, 1]),
        (DelayedScaling(3, algorithm="most_recent"), [0, 1, 0, 1, 1], [0, 1, 1, 1, 1]),
        (DelayedScaling(1024), [0, 1, 2, 3, 3], [0, 1, 4, 5, 5]),
    ],
)
def test_coverage_tells_how_much_of_the_history_was_seen(recipe, seen, held):
    amaxes = np.array([1, 1, 1, 0, 1], np.float32)  # the fourth did not roll
    found = recipe.coverage(amaxes, np.array([0, 1, 4, 5, 6]))
    assert [each.tolist() for each in found] == [seen, held]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda fmt: fmt.name)
def test_current_scaling_over_a_record_is_that_of_its_steps(power_of_two, fmt):
    amaxes = np.float32([0.0, 1e-45, 1e-12, 2.0**-20, 0.3, 1.0, 447.9, 65504.0, FP32_MAX, INF, NAN])
    recipe = CurrentScaling(power_of_two)
    stepped = recipe.step({}, torch.from_numpy(amaxes), fmt)[0].numpy()
    found = recipe.over(amaxes, fmt)
    assert found.dtype == np.float32
    assert found.tolist() == stepped.tolist()
