import math
import sys
from subprocess import run

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tb_builders import cast, infos, powers, snapshot
from weight_builders import shadow, state, update

from numwatch.report.scalars import LARGEST_SCALAR, scalars
from numwatch.report.tb_curation import NAMED_SLOTS, Curation
from numwatch.snapshot import GRADIENT_ROLES, ROLES, Snapshot, StepScalars
from numwatch.stats import TensorStats

LOG2_FP16_MAX = math.log2(65504)
LOG2_1_5 = math.log2(1.5)


def test_step_without_rows_gives_the_steps_own_figures():
    step = snapshot(
        3,
        loss_scale=2.0**16,
        found_inf=True,
        skipped=True,
        grad_norm=2.5,
        step_seconds=0.25,
        numwatch_seconds=0.05,
    )
    assert scalars(step, {}) == {
        "numwatch/loss_scale_log2": 16.0,
        "numwatch/found_inf": 1.0,
        "numwatch/skipped": 1.0,
        "numwatch/grad_norm_unscaled": 2.5,
        "numwatch/cost_percent": pytest.approx(25.0),
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 1e300])
def test_value_that_a_chart_cannot_show_is_left_out(value):
    tags = scalars(snapshot(0, grad_norm=value, loss_scale_before=value or 0.0), {})
    assert "numwatch/grad_norm_unscaled" not in tags
    assert ("numwatch/loss_scale_log2" in tags) == (value == 1e300)


def test_forward_role_of_two_slots_in_closed_form():
    # FP16 flushes what is at or below 2^-25 and saturates above 65504.
    slots = {
        "a:output": powers({-26: 1, 0: 3}),
        "b:output": powers({-30: 1, -20: 1, 14: 1, 16: 1}, nans=2),
    }
    tags = scalars(snapshot(0, slots), infos(slots))
    group = {k.removeprefix("numwatch_roles/output/"): v for k, v in tags.items() if "roles" in k}
    assert group == {
        "amax_log2_worst": pytest.approx(16 + LOG2_1_5),
        "amax_log2_median": pytest.approx(8 + LOG2_1_5),
        "smallest_normal_log2": -14.0,
        "max_log2": pytest.approx(LOG2_FP16_MAX),
        "headroom_bits_worst": pytest.approx(LOG2_FP16_MAX - 16 - LOG2_1_5),
        "headroom_bits_median": pytest.approx(LOG2_FP16_MAX - 8 - LOG2_1_5),
        "nonfinite": 2.0,
        "flushed_worst": 0.25,
        "flushed_median": 0.25,
        "saturated_worst": 0.25,
        "saturated_median": 0.125,
    }
    assert tags["numwatch/nonfinite_slots"] == 1.0


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp32"])
def test_headroom_is_the_one_of_the_statistics(fmt):
    stats = powers({-3: 1, 9: 1})
    tags = scalars(snapshot(0, {"a:weight": stats}), infos(["a:weight"], fmt), ["a:weight"])
    assert tags["numwatch_tensors/a/weight/headroom_bits"] == pytest.approx(stats.headroom(fmt))


def test_gradient_figures_are_scaled_and_say_so():
    slots = {"a:grad_output": powers({0: 1, 4: 1})}
    tags = scalars(snapshot(0, slots, loss_scale=2.0**10), infos(slots), slots)
    assert tags["numwatch_roles/grad_output_scaled/amax_log2_worst"] == pytest.approx(4 + LOG2_1_5)
    assert tags["numwatch_roles/grad_output_unscaled/amax_log2_worst"] == pytest.approx(
        -6 + LOG2_1_5
    )
    assert tags["numwatch_roles/grad_output_unscaled/amax_log2_median"] == pytest.approx(
        -6 + LOG2_1_5
    )
    assert tags["numwatch_roles/grad_output_scaled/headroom_bits_worst"] == pytest.approx(
        LOG2_FP16_MAX - 4 - LOG2_1_5
    )
    assert tags["numwatch_tensors/a/grad_output_scaled/flushed"] == 0.0


@pytest.mark.parametrize("role", ROLES)
def test_every_tag_of_a_gradient_says_which_domain(role):
    slots = {f"blocks.0.fc:{role}": powers({0: 1}, zeros=3)}
    tags = scalars(snapshot(0, slots), infos(slots), slots)
    of_tensors = [tag for tag in tags if tag.startswith(("numwatch_roles/", "numwatch_tensors/"))]
    assert len(of_tensors) > 10
    for tag in of_tensors:
        assert (f"{role}_scaled/" in tag or f"{role}_unscaled/" in tag) == (role in GRADIENT_ROLES)


def test_amax_only_rows_give_only_what_follows_from_amax():
    slots = {"a:output": powers({0: 1}), "a:grad_output": powers({-3: 1})}
    full = scalars(snapshot(0, slots), infos(slots), slots)
    amax_only = scalars(snapshot(0, slots, full=False), infos(slots), slots)
    figures = {tag.rpartition("/")[2] for tag in amax_only if "numwatch_" in tag}
    assert figures == {
        "amax_log2",
        "amax_log2_worst",
        "amax_log2_median",
        "smallest_normal_log2",
        "max_log2",
        "headroom_bits",
        "headroom_bits_worst",
        "headroom_bits_median",
        "nonfinite",
    }
    assert amax_only["numwatch/nonfinite_slots"] == 0.0
    assert {tag: full[tag] for tag in amax_only} == amax_only


def test_worst_amax_and_its_limits_belong_to_the_slot_with_the_least_headroom():
    slots = {"wide:output": powers({20: 1}), "narrow:output": powers({10: 1})}
    table = infos(["wide:output"], "bf16") | infos(["narrow:output"], "fp16")
    tags = scalars(snapshot(0, slots), table)
    role = "numwatch_roles/output"
    assert tags[f"{role}/amax_log2_worst"] == pytest.approx(10 + LOG2_1_5)
    assert tags[f"{role}/max_log2"] == pytest.approx(LOG2_FP16_MAX)
    assert tags[f"{role}/max_log2"] - tags[f"{role}/amax_log2_worst"] == pytest.approx(
        tags[f"{role}/headroom_bits_worst"]
    )


def test_margin_is_whole_or_absent():
    slots = {"dead:output": powers({}, zeros=8), "double:output": powers({0: 1})}
    table = infos(["dead:output"]) | infos(["double:output"], "fp64", "float64")
    tags = scalars(snapshot(0, slots), table, slots)
    assert not [t for t in tags if t.startswith("numwatch_tensors/dead/output/") and "log2" in t]
    assert tags["numwatch_tensors/double/output/amax_log2"] == pytest.approx(LOG2_1_5)
    assert "numwatch_tensors/double/output/max_log2" not in tags


def test_cast_gives_its_own_counts_and_limits_over_its_scale():
    slots = {"a:input": powers({-20: 1, 0: 7}, zeros=2)}
    casts = {"a:input": cast(2, 1, scale=64.0)}
    tags = scalars(snapshot(0, slots, casts=casts), infos(slots, "bf16"), slots)
    tensor = "numwatch_tensors/a/input"
    assert tags[f"{tensor}/flushed"] == 0.25
    assert tags[f"{tensor}/saturated"] == 0.125
    assert tags[f"{tensor}/max_log2"] == pytest.approx(math.log2(448 / 64))
    assert tags[f"{tensor}/smallest_normal_log2"] == -6 - 6
    assert tags[f"{tensor}/headroom_bits"] == pytest.approx(math.log2(448 / (64 * 1.5)))


def test_cast_with_a_scale_a_row_has_counts_but_no_limits():
    slots = {"a:input": powers({0: 8})}
    casts = {"a:input": cast(2, 0, scale=math.nan)}
    tags = scalars(snapshot(0, slots, casts=casts), infos(slots, "bf16"), slots)
    assert tags["numwatch_tensors/a/input/flushed"] == 0.25
    assert "numwatch_tensors/a/input/headroom_bits" not in tags


def test_eight_bit_format_without_a_scale_says_nothing_about_headroom():
    slots = {"a:input": powers({0: 8})}
    tags = scalars(snapshot(0, slots), infos(slots, "e4m3", "bfloat16"), slots)
    assert "numwatch_tensors/a/input/headroom_bits" not in tags
    stored = scalars(snapshot(0, slots), infos(slots, "e4m3", "float8_e4m3fn"), slots)
    assert stored["numwatch_tensors/a/input/headroom_bits"] == pytest.approx(math.log2(448 / 1.5))


def test_flushed_of_a_tensor_already_in_its_format_is_an_estimate_and_says_so():
    slots = {"a:grad_output": powers(dict.fromkeys(range(-24, 3), 1000), zeros=4000)}
    stored = scalars(snapshot(0, slots), infos(slots, "fp16", "float16"), slots)
    assert "numwatch_tensors/a/grad_output_scaled/flushed" not in stored
    assert 0 <= stored["numwatch_tensors/a/grad_output_scaled/flushed_estimate"] <= 1
    assert "numwatch_roles/grad_output_scaled/flushed_estimate_worst" in stored
    before = scalars(snapshot(0, slots), infos(slots, "fp16", "float32"), slots)
    assert before["numwatch_tensors/a/grad_output_scaled/flushed"] == 0.0
    assert "numwatch_tensors/a/grad_output_scaled/flushed_estimate" not in before


def test_flushed_of_nothing_but_zeros_is_unknown_in_a_tensor_already_in_its_format():
    slots = {"a:grad_output": powers({}, zeros=9)}
    stored = scalars(snapshot(0, slots), infos(slots, "fp16", "float16"), slots)
    assert not [tag for tag in stored if "flushed" in tag]


def test_slot_of_unknown_format_has_amax_and_counts_only():
    slots = {":output": powers({2: 1}, posinfs=1)}
    tags = scalars(snapshot(0, slots), {}, slots)
    tensor = {t.removeprefix("numwatch_tensors/"): v for t, v in tags.items() if "tensors" in t}
    assert tensor == {
        "root/output/amax_log2": pytest.approx(2 + LOG2_1_5),
        "root/output/nonfinite": 1.0,
    }


exponents = st.dictionaries(st.integers(-127, 126), st.integers(1, 10**6), max_size=5)


@given(
    st.lists(st.tuples(exponents, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.sampled_from(["fp16", "bf16", "fp32", "e5m2", None]),
    st.floats(),
)
@example(tensors=[({}, 0, 0)] * 4 + [({0: 1}, 0, 0)], fmt="fp16", loss_scale=1e-300)
def test_only_finite_values_and_shares_between_0_and_1(tensors, fmt, loss_scale):
    slots = {
        f"m{i}:{ROLES[i % len(ROLES)]}": powers(counts, zeros=zeros, nans=nans)
        for i, (counts, zeros, nans) in enumerate(tensors)
    }
    tags = scalars(snapshot(0, slots, loss_scale=loss_scale), infos(slots, fmt), slots)
    for tag, value in tags.items():
        assert abs(value) <= LARGEST_SCALAR
        if "flushed" in tag or "saturated" in tag:
            assert 0 <= value <= 1


def test_no_elements_at_all():
    slots = {"a:output": TensorStats.empty()}
    tags = scalars(snapshot(0, slots), infos(slots), slots)
    tensor = {t.rpartition("/")[2]: v for t, v in tags.items() if "numwatch_tensors" in t}
    assert tensor == {"nonfinite": 0.0}


def test_first_full_rows_name_the_worst_slot_of_each_role():
    slots = {
        "a:output": powers({0: 1}),
        "b:output": powers({0: 1, 16: 1}),
        "a:grad_output": powers({0: 1}, nans=1),
        "b:grad_output": powers({0: 1}),
    }
    curation = Curation()
    curation.scalars(snapshot(0, slots, full=False), infos(slots))
    assert curation.named == ()
    curation.scalars(snapshot(1, slots), infos(slots))
    assert curation.named == ("b:output", "a:grad_output")


def test_slot_that_gets_into_trouble_later_takes_a_free_place_and_keeps_it():
    calm = {f"m{i}:output": powers({0: 1, i: 1}) for i in range(4)}
    curation = Curation(capacity=2)
    curation.scalars(snapshot(0, calm), infos(calm))
    curation.scalars(snapshot(1, calm), infos(calm))
    assert curation.named == ("m3:output",)
    curation.scalars(snapshot(2, calm | {"m1:output": powers({20: 1})}), infos(calm))
    assert curation.named == ("m3:output", "m1:output")
    tags = curation.scalars(snapshot(3, calm | {"m2:output": powers({25: 1})}), infos(calm))
    assert curation.named == ("m3:output", "m1:output")
    assert "numwatch_tensors/m1/output/amax_log2" in tags
    assert "numwatch_tensors/m2/output/amax_log2" not in tags


def test_curated_scalars_are_the_pure_ones_and_a_running_total_of_skips():
    slots = {"a:output": powers({0: 1}), "b:output": powers({1: 1})}
    curation = Curation()
    totals = []
    for step, skipped in enumerate([False, True, True, False]):
        seen = snapshot(step, slots, skipped=skipped)
        tags = curation.scalars(seen, infos(slots))
        totals.append(tags.pop("numwatch/skipped_steps_total"))
        assert tags == scalars(seen, infos(slots), curation.named)
    assert totals == [0.0, 1.0, 2.0, 2.0]


def test_tags_of_a_run_stay_few_and_scalars_are_plain_floats():
    rng = np.random.default_rng(0)
    slots = [f"blocks.{i}:{role}" for i in range(50) for role in ROLES]
    table = infos(slots[::2]) | infos(slots[1::2], "fp16", "float16")
    curation = Curation()
    seen = set()
    for step in range(20):
        stats = {
            s: powers({int(e): 9}, zeros=1)
            for s, e in zip(slots, rng.integers(-60, 20, 300), strict=True)
        }
        tags = curation.scalars(snapshot(step, stats), table)
        assert {type(value) for value in tags.values()} == {float}
        seen |= tags.keys()
    assert len(curation.named) == NAMED_SLOTS
    assert len(seen) < 200


def test_scalars_need_no_tensorboard():
    code = "import sys, numwatch.report.scalars, numwatch.report.tb_curation as c; "
    code += "sys.exit('tensorboard' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


class TestWeights:
    """Updates, optimizer state and shadow steps of one step."""

    def tags(self, slots=(), named=(), **entries):
        table = infos(slots, "bf16", "bfloat16") if slots else {}
        return scalars(Snapshot(0, StepScalars(), **entries), table, (), named)

    def test_shares_count_each_parameter_by_its_updates(self):
        updates = (
            update("a", nonzero=300, swallowed=1.0, ratio=2.0**-10),
            update("b", nonzero=100, swallowed=0.0, ratio=2.0**-4, edq_normalised=None),
            update("c", nonzero=0, swallowed=None, ratio=None),
        )
        tags = self.tags(updates=updates)
        group = "numwatch_updates/bf16"
        assert tags[f"{group}/swallowed"] == pytest.approx(0.75)
        assert tags[f"{group}/edq_normalised"] == pytest.approx(0.75)
        assert tags[f"{group}/stochastic_kept"] == pytest.approx(0.125)
        assert f"{group}/deferred" not in tags
        assert tags["numwatch_updates/ratio_log2_median"] == -7.0
        assert tags["numwatch_updates/ratio_log2_worst"] == -4.0

    def test_where_some_weights_are_stored_so_the_figures_are_theirs(self):
        updates = (update("a", lost=True, swallowed=0.9), update("b", swallowed=0.1))
        assert self.tags(updates=updates)["numwatch_updates/bf16/swallowed"] == 0.9

    def test_named_parameters_show_the_format_they_are_in_or_would_be(self):
        every = tuple(
            update("a", storage, swallowed=share)
            for storage, share in (("fp16", 0.1), ("bf16", 0.2), ("e4m3", 0.9))
        )
        tag = "numwatch_parameters/a/swallowed"
        assert self.tags(["m:output"], ["a"], updates=every)[tag] == 0.2
        lost = (*every[1:], update("a", "fp16", swallowed=0.1, lost=True))
        assert self.tags(["m:output"], ["a"], updates=lost)[tag] == 0.1
        assert not [t for t in self.tags(updates=every) if "parameters" in t]

    def test_the_worst_state_over_all_parameters(self):
        states = (
            state("a", rms=1.0, below_eps=0.5),
            state("b", rms=3.0, below_eps=0.1, vanished=0.2),
            state("c", rms=math.inf),
        )
        assert self.tags(states=states).items() >= {
            ("numwatch_states/rms_t_worst", 3.0),
            ("numwatch_states/below_eps_worst", 0.5),
            ("numwatch_states/vanished_worst", 0.2),
        }

    def test_shadows_by_role_over_all_elements(self):
        shadows = (
            shadow("a:grad_output", sampled=100, zeros=0, flushed=10, relative_error=0.1),
            shadow("b:grad_output", sampled=400, zeros=100, flushed=90, relative_error=0.3),
            shadow("b:grad_weight", zeros=1000, flushed=0, relative_error=None),
        )
        tags = {t: v for t, v in self.tags(shadows=shadows).items() if "shadow" in t}
        assert tags == {
            "numwatch_shadow/grad_output_unscaled/flushed": 0.25,
            "numwatch_shadow/grad_output_unscaled/relative_error_median": pytest.approx(0.2),
        }

    def test_the_parameters_that_lose_most_are_named_once_and_for_all(self):
        curation = Curation()
        first = tuple(update(f"p{i}", swallowed=i / 10) for i in range(6))
        curation.scalars(Snapshot(0, StepScalars(), updates=first), {})
        assert curation.parameters == ("p5", "p4", "p3")
        later = tuple(update(f"p{i}", swallowed=1 - i / 10) for i in range(6))
        tags = curation.scalars(Snapshot(1, StepScalars(), updates=later), {})
        assert {t.split("/")[1] for t in tags if "parameters" in t} == {"p5", "p4", "p3"}

    def test_parameters_slots_are_no_slots_of_modules(self):
        slots = {"a:output": powers({0: 1}), "a.weight:exp_avg": powers({0: 1}, nans=1)}
        tags = scalars(snapshot(0, slots), infos(slots), slots)
        assert tags["numwatch/nonfinite_slots"] == 0.0
        assert not [tag for tag in tags if "exp_avg" in tag]
