"""Which loss scales a run's gradients fit, as a report says it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from summary_builders import rows, slot
from tb_builders import infos, powers, snapshot
from weight_builders import record, scaled_run

from numwatch import open_run, tensor_stats
from numwatch.record.gradients import gradient_groups
from numwatch.record.pack import tensors_table
from numwatch.record.totals import read_totals
from numwatch.report import summarize
from numwatch.report.scalars import scalars
from numwatch.report.scale_window_lines import window_line
from numwatch.snapshot import GRADIENT_ROLES, ROLES, Snapshot, StepScalars
from numwatch.stats import TensorStats


def run_of(directory, values, scales, *, steps=None, dtype="float32"):
    """A record of one gradient, seen at each scale; more steps without rows."""
    info = slot("fc", "grad_weight", dtype=dtype, fmt="fp32" if dtype == "float32" else "fp16")
    x = torch.tensor(values)
    seen = [
        Snapshot(
            i,
            StepScalars(loss_scale_before=s, loss_scale_after=s),
            rows([(info, tensor_stats((x * s).to(getattr(torch, dtype))), None)], s),
        )
        for i, s in enumerate(scales)
    ]
    more = [
        Snapshot(len(scales) + i, StepScalars(loss_scale_before=s, loss_scale_after=s))
        for i, s in enumerate(steps or ())
    ]
    record(directory, [*seen, *more], [info])
    return summarize(open_run(directory))


def line_of(summary):
    return window_line(summary.window).plain.removeprefix("window").strip()


def test_the_window_and_the_steps_in_closed_form(tmp_path):
    # Two of a thousand at 2^-26: flushed up to 2^-25 after scaling, so the scale must be 4. The
    # largest is 2, which rounds to inf in FP16 from 65520 on.
    scaled_run(tmp_path)
    found = summarize(open_run(tmp_path)).window
    assert (found.window.low, found.window.high) == (2, 14)
    assert (found.below, found.inside, found.above) == (0, 3, 1)
    steps = {line.exponent: n for line, n in zip(found.window.lines, found.steps, strict=True)}
    assert {exponent: n for exponent, n in steps.items() if n} == {2: 1, 8: 2}


def test_without_a_scaler_the_json_alone_has_it(tmp_path):
    summary = run_of(tmp_path, [2.0**-20, 1.0], [1.0])
    assert summary.loss_scale is None
    content = summary.as_dict()["window"]
    assert (content["window"]["low"], content["window"]["high"]) == (-4, 15)
    assert content["inside"] == 1
    assert content["window"]["lines"][0]["flushed"]["value"] == 0.5


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([2.0**-20, 1.0], "FP16 gradients fit 2^-4 to 2^15"),
        ([1.0], "FP16 gradients fit any scale up to 2^15"),
        ([2.0**-30], "FP16 gradients fit 2^6 and above"),
        (
            [2.0**-40, 2.0**10],
            "no scale fits FP16: 50.0 % flushed at 2^5, above it fc:grad_weight overflows",
        ),
        ([2.0**60], "no scale fits FP16 gradients: fc:grad_weight always overflows"),
        ([0.0], "no finite gradient but zeros was seen: no loss scale to tell for FP16"),
    ],
)
def test_every_kind_of_window_has_words(tmp_path, values, text):
    assert line_of(run_of(tmp_path, values, [1.0])).startswith(text)


def test_steps_outside_are_counted_apart(tmp_path):
    summary = run_of(tmp_path, [2.0**-26, 2.0], [4.0], steps=[1.0, 2.0**20, 2.0**16, 16.0])
    assert line_of(summary).endswith("· 2 of 5 steps ran inside, 1 below, 2 above")


def test_steps_that_were_skipped_inside_are_said_to_be(tmp_path):
    """What overflowed in them has no rows: gradients of biases have none."""
    info = slot("fc", "grad_weight", dtype="float16", fmt="fp16")
    entry = rows([(info, tensor_stats(torch.tensor([1.0, 2.0]).half()), None)], 2.0**13)
    steps = [
        Snapshot(
            i,
            StepScalars(loss_scale_before=2.0**13, loss_scale_after=2.0**13, skipped=i == 1),
            entry,
        )
        for i in range(3)
    ]
    record(tmp_path, steps, [info])
    summary = summarize(open_run(tmp_path))
    assert line_of(summary).endswith("· 3 of 3 steps ran inside, of these 1 skipped")
    assert summary.as_dict()["window"]["skipped_inside"] == 1


def test_without_gradients_there_is_no_window(tmp_path):
    record(tmp_path, [Snapshot(0, StepScalars())])
    assert summarize(open_run(tmp_path)).window is None


def test_groups_are_slots_and_scales_of_gradients(tmp_path):
    infos_ = [slot("a", role, dtype="float32", fmt="fp16") for role in ROLES]
    stats = tensor_stats(torch.tensor([1.0, 2.0]))
    entries = [(info, stats, None) for info in infos_]
    tables = [
        tensors_table([Snapshot(i, StepScalars(), rows(entries, scale, full=full))], 0)
        for i, (scale, full) in enumerate([(4.0, True), (2.0, True), (4.0, True), (8.0, False)])
    ]
    groups = gradient_groups(read_totals(tables), {info.slot: info for info in infos_})
    found = {(group.slot, group.loss_scale): group for group in groups}
    assert found.keys() == {(f"a:{role}", s) for role in GRADIENT_ROLES for s in (2.0, 4.0, 8.0)}
    # Of amax-only rows the upper end alone.
    assert (found["a:grad_input", 8.0].stats.nonzeros, found["a:grad_input", 8.0].stats.amax) == (
        0,
        2.0,
    )
    assert found["a:grad_input", 4.0].stats.numel == 4
    # GEMMs in FP16 rounded their results; grad_output is FP32 still.
    assert {group.slot for group in groups if group.rounded} == {"a:grad_input", "a:grad_weight"}


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, 1024.0]), st.integers(-20, 20)),
        min_size=1,
        max_size=8,
    )
)
def test_groups_hold_every_row_once(pieces):
    info = slot("a", "grad_output")
    tables = [
        tensors_table(
            [Snapshot(i, StepScalars(), rows([(info, powers({e: 3}, zeros=1), None)], scale))], 0
        )
        for i, (scale, e) in enumerate(pieces)
    ]
    totals = read_totals(tables)
    groups = gradient_groups(totals, {info.slot: info})
    assert sorted(group.loss_scale for group in groups) == sorted({s for s, _ in pieces})
    merged = sum((group.stats for group in groups), TensorStats.empty())
    assert merged == totals.by_slot()[info.slot].stats
    assert merged.numel == 4 * len(pieces)


class TestScalars:
    """The same of a single step, for a chart."""

    def tags(self, slots, scale, **options):
        found = scalars(snapshot(0, slots, loss_scale=scale, **options), infos(slots, "fp32"))
        group = "numwatch_window/"
        return {t.removeprefix(group): v for t, v in found.items() if t.startswith(group)}

    def test_both_ends_and_the_scale(self):
        slots = {"a:grad_output": powers({-20: 1}), "b:grad_weight": powers({4: 1})}
        # Seen at scale 16: 1.5 * 2^-24 must stay above 2^-25, 1.5 * 2^0 must stay below 65520.
        assert self.tags(slots, 16.0) == {
            "loss_scale_log2": 4.0,
            "low_log2": -1.0,
            "high_log2": 15.0,
        }

    def test_an_empty_window_shows_its_ends_crossed(self):
        slots = {"a:grad_output": powers({-40: 1}), "b:grad_weight": powers({10: 1})}
        tags = self.tags(slots, 1.0)
        assert tags["low_log2"] > tags["high_log2"]

    def test_all_three_or_none(self):
        dead = {"a:grad_output": powers({}, zeros=4)}
        assert self.tags(dead, 1.0) == {}
        alive = {"a:grad_output": powers({0: 1})}
        assert self.tags(alive, 0.0) == {}
        assert self.tags(alive, math.inf) == {}
        assert self.tags(alive, 1.0, full=False) == {}
        assert self.tags({"a:output": powers({0: 1})}, 1.0) == {}
