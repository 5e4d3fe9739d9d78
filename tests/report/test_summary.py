import json
import math
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from summary_builders import amax_only, fp8_run, fp16_run, log_normal, rows, slot

from numwatch import open_run, tensor_stats
from numwatch.record import Recorder
from numwatch.record.totals import slot_totals
from numwatch.report import summarize
from numwatch.report.summary import epochs
from numwatch.report.trajectory import TREND_POINTS
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.tensor_rows import Cast


@pytest.fixture
def fp16(tmp_path):
    fp16_run(tmp_path)
    return open_run(tmp_path)


def record(directory, snapshots, infos=(), precision="16-mixed"):
    with Recorder.open(directory, precision=precision, device="cpu", arguments={}) as recorder:
        recorder.describe(list(infos))
        for at, snapshot in enumerate(snapshots, start=1):
            recorder.write(snapshot)
            if at % 25 == 0:  # no run is as fast: its rows would be thinned
                recorder.flush()
    return open_run(directory)


def figures_of(directory, info, stats, cast=None, loss_scale=1.0):
    snapshot = Snapshot(0, StepScalars(), rows([(info, stats, cast)], loss_scale))
    run = record(directory, [snapshot], [info])
    (line,) = summarize(run).tensors
    return line


def test_the_head_says_what_the_run_was(fp16):
    summary = summarize(fp16)
    assert (summary.epoch, summary.first_step, summary.last_step, summary.steps) == (None, 0, 7, 8)
    assert (summary.precision, summary.device, summary.slots) == ("16-mixed", "cuda:0", 7)
    assert summary.cost == pytest.approx(0.0008 / 0.1)
    assert summary.loss == (3.5, 1.75)
    assert summary.problems == ()


def test_an_epoch_is_its_steps_alone(fp16):
    summary = summarize(fp16, epoch=1)
    assert (summary.first_step, summary.last_step, summary.steps) == (4, 7, 4)
    assert summary.loss == (2.5, 1.75)
    assert (summary.skips.count, summary.skips.last) == (1, 5)
    assert (summary.loss_scale.first, summary.loss_scale.last) == (2.0**14, 2.0**13)
    assert epochs(fp16) == [0, 1]


def test_an_epoch_without_steps_is_empty(fp16):
    summary = summarize(fp16, epoch=5)
    assert (summary.steps, summary.slots, summary.tensors, summary.first_step) == (0, 0, (), None)


def test_skips_name_the_slots_that_were_not_finite(fp16):
    skips = summarize(fp16).skips
    assert (skips.count, skips.last) == (3, 5)
    assert skips.nonfinite == (("blocks.3.out:grad_output", 2),)


def test_slots_of_a_skip_come_in_the_order_they_are_computed(tmp_path):
    bad = tensor_stats(torch.tensor([math.nan]))
    infos = [
        slot("first", "grad_output", order=3),
        slot("last", "grad_output", order=2),
        slot("last", "output", order=1),
        slot("first", "output", order=0),
    ]
    entries = [(info, bad, None) for info in infos]
    run = record(tmp_path, [Snapshot(3, StepScalars(skipped=True), rows(entries))], infos)
    assert [name for name, _ in summarize(run).skips.nonfinite] == [
        "first:output",
        "last:output",
        "last:grad_output",
        "first:grad_output",
    ]


def test_a_skip_whose_tensors_were_not_looked_at_says_so(tmp_path):
    run = record(tmp_path, [Snapshot(0, StepScalars(skipped=True))])
    assert summarize(run).skips.nonfinite is None


def test_amax_only_rows_name_the_slots_of_a_skip_too(tmp_path):
    info = slot("fc", "grad_output")
    bad = replace(amax_only(2.0), posinfs=3)
    snapshot = Snapshot(1, StepScalars(skipped=True), rows([(info, bad, None)], full=False))
    summary = summarize(record(tmp_path, [snapshot], [info]))
    assert summary.skips.nonfinite == ((info.slot, 3),)
    assert [line.verdict for line in summary.tensors] == ["overflow"]


def test_the_trend_shows_every_dip(tmp_path):
    scales = [2.0**16] * 300
    scales[150] = 2.0**4
    snapshots = [
        Snapshot(i, StepScalars(loss_scale_before=s, loss_scale_after=s))
        for i, s in enumerate(scales)
    ]
    trend = summarize(record(tmp_path, snapshots)).loss_scale.trend
    assert len(trend) == TREND_POINTS
    assert sorted(trend) == [4.0] + [16.0] * (TREND_POINTS - 1)


def test_a_loss_scale_that_came_back_is_not_constant(tmp_path):
    scales = [2.0**19, 2.0**20, 2.0**18, 2.0**19]
    snapshots = [
        Snapshot(i, StepScalars(loss_scale_before=a, loss_scale_after=b))
        for i, (a, b) in enumerate(pairwise(scales))
    ]
    scale = summarize(record(tmp_path, snapshots)).loss_scale
    assert (scale.first, scale.last) == (2.0**19, 2.0**19)
    assert (scale.lowest, scale.highest) == (2.0**18, 2.0**20)


def test_a_loss_scale_at_and_below_one_scales(tmp_path):
    info = slot("fc", "grad_output")
    snapshots = [
        Snapshot(i, StepScalars(), rows([(info, log_normal(0, 1.0), None)], scale))
        for i, scale in enumerate([1.0, 0.5, 0.25])
    ]
    (line,) = summarize(record(tmp_path, snapshots, [info])).tensors
    assert line.scaled


def test_a_trace_of_flushed_weights_does_not_outrank_subnormals(tmp_path):
    weights = slot("a", "weight", dtype="float32")
    inputs = slot("b", "input", dtype="float32")
    flushed = tensor_stats(torch.tensor([1.0] * 1999 + [1e-9]))
    subnormal = tensor_stats(torch.tensor([1.0] * 95 + [3e-5] * 5))
    packed = rows([(weights, flushed, None), (inputs, subnormal, None)])
    summary = summarize(record(tmp_path, [Snapshot(0, StepScalars(), packed)], [weights, inputs]))
    assert [line.slot for line in summary.tensors] == ["b:input", "a:weight"]
    assert [line.verdict for line in summary.tensors] == ["ok", "ok"]


def test_a_summary_says_on_how_many_steps_it_rests(tmp_path):
    info = slot("fc", "input")
    one = [(info, log_normal(0, 1.0), None)]
    snapshots = [
        Snapshot(0, StepScalars(), rows(one)),
        *(Snapshot(i, StepScalars(), rows(one, full=False)) for i in (1, 2)),
        *(Snapshot(i, StepScalars()) for i in (3, 4, 5)),
    ]
    summary = summarize(record(tmp_path, snapshots, [info]))
    assert (summary.full_steps, summary.amax_steps, summary.steps) == (1, 2, 6)


def test_a_loss_scale_of_zero_is_no_error(tmp_path):
    scalars = StepScalars(loss_scale_before=2.0**-149, loss_scale_after=0.0)
    run = record(tmp_path, [Snapshot(0, scalars)])
    assert summarize(run).loss_scale.trend == (-149.0, -math.inf)
    info = slot("fc", "grad_output")
    figures = figures_of(tmp_path / "b", info, log_normal(0, 1.0), loss_scale=0.0)
    assert figures.amax_unscaled == 0.0


def test_without_a_scaler_there_is_no_loss_scale(tmp_path):
    fp8_run(tmp_path)
    summary = summarize(open_run(tmp_path))
    assert summary.loss_scale is None
    assert not any(line.scaled for line in summary.tensors)
    assert summary.cost is None


def test_scaled_gradients_have_both_amaxes(fp16):
    (line,) = [s for s in summarize(fp16).tensors if s.slot == "head:grad_output"]
    stats = log_normal(8, 2.0**-25, 3.0, dtype=torch.float16)
    assert line.scaled
    assert line.amax == stats.amax
    # The smallest loss scale gives the largest unscaled amax of a constant scaled one.
    assert line.amax_unscaled == stats.amax / 2.0**13


def test_the_worst_come_first_and_only_so_many(fp16):
    verdicts = [line.verdict for line in summarize(fp16).tensors]
    assert verdicts == ["overflow", "underflow", "ok", "ok", "ok", "ok", "ok"]
    few = summarize(fp16, worst=2)
    assert [line.verdict for line in few.tensors] == ["overflow", "underflow"]
    assert few.verdicts == {
        "overflow": 1,
        "all zero": 0,
        "underflow": 1,
        "tight": 0,
        "unknown": 0,
        "ok": 5,
    }
    assert few.slots == 7


class TestVerdict:
    """Constant tensors and exact counts, so that every figure is known."""

    def verdict(self, tmp_path, values, *, dtype="float32", fmt="fp16", cast=None):
        stats = tensor_stats(torch.tensor(values, dtype=torch.float32))
        return figures_of(tmp_path, slot("fc", "input", dtype=dtype, fmt=fmt), stats, cast)

    def test_one_nan_or_inf_is_overflow(self, tmp_path):
        line = self.verdict(tmp_path, [1.0] * 999 + [math.inf])
        assert (line.verdict, line.infs, line.nans) == ("overflow", 1, 0)
        line = self.verdict(tmp_path / "b", [1.0] * 999 + [math.nan])
        assert (line.verdict, line.infs, line.nans) == ("overflow", 0, 1)

    def test_one_element_above_the_largest_value_is_overflow(self, tmp_path):
        line = self.verdict(tmp_path, [1.0] * 999 + [70000.0])
        assert line.verdict == "overflow"
        assert line.saturated.exact
        assert line.saturated.value == 0.001
        assert line.headroom == pytest.approx(math.log2(65504 / 70000))

    def test_a_hundredth_flushed_is_underflow(self, tmp_path):
        line = self.verdict(tmp_path, [1.0] * 99 + [1e-9])
        assert (line.verdict, line.flushed.value, line.flushed_from) == (
            "underflow",
            0.01,
            "counts",
        )
        assert self.verdict(tmp_path / "b", [1.0] * 100 + [1e-9]).verdict == "ok"

    def test_half_subnormal_is_underflow(self, tmp_path):
        line = self.verdict(tmp_path, [1.0, 3e-5])
        assert (line.verdict, line.subnormal.value) == ("underflow", 0.5)
        assert self.verdict(tmp_path / "b", [1.0] * 88 + [3e-5] * 12).verdict == "ok"

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("full", [True, False])
    def test_gradients_that_are_all_zero_are_no_underflow_and_not_ok(self, tmp_path, dtype, full):
        info = slot("fc", "grad_output", dtype=dtype)
        packed = rows([(info, tensor_stats(torch.zeros(8)), None)], 2.0**16, full=full)
        run = record(tmp_path, [Snapshot(0, StepScalars(), packed)], [info])
        (line,) = summarize(run).tensors
        assert line.verdict == "all zero"
        assert line.zero_share == (1.0 if full else None)
        assert (line.flushed, line.flushed_from, line.subnormal, line.saturated) == (None,) * 4

    def test_forward_tensors_may_be_all_zero(self, tmp_path):
        line = self.verdict(tmp_path, [0.0] * 8)
        assert (line.verdict, line.zero_share) == ("ok", 1.0)
        assert (line.flushed, line.saturated, line.headroom) == (None,) * 3

    def test_nothing_finite_seen_is_never_ok(self, tmp_path):
        assert self.verdict(tmp_path, []).verdict == "unknown"
        line = self.verdict(tmp_path / "b", [math.nan, math.inf])
        assert (line.verdict, line.saturated) == ("overflow", None)
        cast = Cast("e4m3", 448.0, flushed=0, saturated=0)
        line = self.verdict(tmp_path / "c", [0.0], fmt="e4m3", cast=cast)
        assert (line.flushed, line.flushed_from, line.limits) == (None,) * 3

    def test_less_than_a_bit_of_headroom_is_tight(self, tmp_path):
        assert self.verdict(tmp_path, [40000.0]).verdict == "tight"
        assert self.verdict(tmp_path / "b", [30000.0]).verdict == "ok"

    def test_zeros_that_were_zeros_are_not_underflow(self, tmp_path):
        assert self.verdict(tmp_path, [0.0] * 900 + [1.0] * 100).verdict == "ok"
        relu = self.verdict(tmp_path / "b", [0.0] * 900 + [1.0] * 100, dtype="float16")
        assert (relu.verdict, relu.flushed_from) == ("ok", "estimate")
        assert relu.flushed.value < 0.001

    def test_a_cast_counts_what_the_library_did(self, tmp_path):
        cast = Cast("e4m3", 448.0, flushed=5, saturated=0)
        line = self.verdict(tmp_path, [1.0] * 100, fmt="e4m3", cast=cast)
        assert (line.verdict, line.flushed.value, line.flushed_from) == ("underflow", 0.05, "cast")
        # The cast puts amax at the limit on purpose: no headroom, and yet not tight.
        assert line.headroom == 0.0
        fit = Cast("e4m3", 448.0, flushed=0, saturated=0)
        assert self.verdict(tmp_path / "b", [1.0] * 100, fmt="e4m3", cast=fit).verdict == "ok"

    def test_a_cast_by_rows_has_no_headroom_to_tell(self, tmp_path):
        cast = Cast("e4m3", math.nan, flushed=0, saturated=0)
        assert self.verdict(tmp_path, [1.0], fmt="e4m3", cast=cast).headroom is None

    def test_what_is_not_known_is_none(self, tmp_path):
        line = self.verdict(tmp_path, [1.0], fmt=None)
        assert (line.flushed, line.subnormal, line.saturated, line.headroom) == (None,) * 4
        # FP8 behind a scale that is not known.
        line = self.verdict(tmp_path / "b", [1.0], fmt="e4m3")
        assert (line.flushed, line.headroom, line.verdict) == (None, None, "ok")


def test_amax_only_rows_count_for_amax_and_nothing_else(tmp_path):
    info = slot("fc", "input", dtype="float32")
    full = tensor_stats(torch.ones(10))
    snapshots = [
        Snapshot(0, StepScalars(), rows([(info, full, None)])),
        Snapshot(1, StepScalars(), rows([(info, amax_only(50000.0, numel=10), None)], full=False)),
    ]
    (line,) = summarize(record(tmp_path, snapshots, [info])).tensors
    assert (line.amax, line.verdict) == (50000.0, "tight")
    totals = slot_totals(open_run(tmp_path).tensor_batches())[info.slot]
    # A record leaves the dtype to the slot table.
    assert totals.stats == replace(full, dtype=None)
    assert (totals.rows, totals.full_rows) == (2, 1)


def test_what_amax_only_rows_do_not_tell_is_none_not_zero(tmp_path):
    info = slot("fc", "input")
    snapshot = Snapshot(0, StepScalars(), rows([(info, amax_only(2.0), None)], full=False))
    (line,) = summarize(record(tmp_path, [snapshot], [info])).tensors
    assert (line.zero_share, line.flushed, line.subnormal, line.saturated) == (None,) * 4
    assert (line.nans, line.infs) == (0, 0)
    assert line.headroom == pytest.approx(15, abs=1e-3)


def test_damage_is_said(tmp_path):
    fp16_run(tmp_path)
    part = tmp_path / "tensors" / "attempt-000-part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    summary = summarize(open_run(tmp_path))
    assert summary.tensors == ()
    assert len(summary.problems) == 1


def test_the_json_is_strict_and_whole(tmp_path):
    fp16_run(tmp_path / "a")
    fp8_run(tmp_path / "b")
    for name in "ab":
        summary = summarize(open_run(tmp_path / name))
        content = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
        assert content.keys() == vars(summary).keys()
        assert [line["slot"] for line in content["tensors"]] == [s.slot for s in summary.tensors]
        assert [line["flushed"] for line in content["tensors"]] == [
            s.flushed and vars(s.flushed) for s in summary.tensors
        ]


def test_json_spells_out_what_it_has_no_number_for(tmp_path):
    run = record(tmp_path, [Snapshot(0, StepScalars(loss=loss)) for loss in (1.0, math.nan)])
    assert summarize(run).as_dict()["loss"] == [1.0, "NaN"]


def test_a_summary_of_many_rows_stays_quick(tmp_path):
    """No Python step a row: a day's record has millions."""
    info = [slot(f"m{i}", "input") for i in range(200)]
    stats = log_normal(0, 1.0)
    packed = rows([(one, stats, None) for one in info])
    run = record(tmp_path, [Snapshot(i, StepScalars(), packed) for i in range(100)], info)
    before = time.process_time()
    totals = slot_totals(run.tensor_batches())
    assert time.process_time() - before < 2.0
    assert totals["m0:input"].stats.numel == 100 * stats.numel
    assert np.isclose(totals["m0:input"].stats.sumsq, 100 * stats.sumsq)
