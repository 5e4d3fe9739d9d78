"""The columns that rules read are those of the record."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diagnosis_builders import Step, layers, make_run, slot, snapshot, spread
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch import open_run, tensor_stats
from numwatch.diagnose.evidence import Evidence, evenly
from numwatch.formats import get_format
from numwatch.record import Recorder, iter_rows
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.step_entries import OptimizerState, Update
from numwatch.tensor_rows import Cast

FORMATS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def as_told(rows, info):
    """The columns of `Series` from rows, one number at a time."""
    columns = {name: [] for name in ("zeros", "flushed", "subnormal", "rms", "mean")}
    fmt = get_format(info.format)
    for _, row in rows:
        stats = row.stats
        finite = stats.numel - stats.nans - stats.posinfs - stats.neginfs
        columns["zeros"].append(stats.zeros / stats.numel)
        columns["flushed"].append(stats.flushed(fmt).value if stats.nonzeros else math.nan)
        columns["subnormal"].append(stats.subnormal(fmt).value if stats.nonzeros else math.nan)
        columns["rms"].append(math.sqrt(stats.sumsq / finite) if finite else math.nan)
        columns["mean"].append(stats.sum / finite if finite else math.nan)
    return columns


_magnitudes = st.floats(-40, 20).map(lambda exponent: 1.1 * 2.0**exponent)
_elements = st.sampled_from([0.0, math.nan, math.inf, -math.inf]) | _magnitudes
_tensors = st.lists(_elements, min_size=1, max_size=12).map(torch.tensor)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.lists(_tensors, min_size=2, max_size=2), min_size=1, max_size=4),
    fmt=st.sampled_from(sorted(FORMATS)),
)
def test_columns_are_those_of_the_rows(tmp_path_factory, steps, fmt):
    infos = [slot("b", "input", 1, "float32", fmt), slot("a", "output", 0, "float32", fmt)]
    names = [info.slot for info in infos]
    run = make_run(
        tmp_path_factory.mktemp("run"),
        infos,
        [Step(tensors=dict(zip(names, tensors, strict=True))) for tensors in steps],
    )
    evidence = Evidence(run)
    assert [name for name, _, _ in evidence.by_role("input", "output")] == ["a:output", "b:input"]
    for info in infos:
        series = evidence.series(info.slot)
        rows = list(iter_rows(run.tensors(info.slot)))
        assert series.step.tolist() == [step for step, _ in rows]
        assert series.full.all()
        for name in ("numel", "nans", "posinfs", "neginfs", "amax"):
            assert getattr(series, name).tolist() == [getattr(row.stats, name) for _, row in rows]
        for name, expected in as_told(rows, info).items():
            np.testing.assert_allclose(getattr(series, name), expected, rtol=1e-6, err_msg=name)


def test_a_cut_lies_where_the_format_has_it(tmp_path):
    """2^-26 is flushed by FP16, 2^-24 is its smallest subnormal, 2^-14 its smallest normal."""
    info = slot("a", "input", 0, "float32", "fp16")
    values = torch.tensor([2.0**-26, 2.0**-24, 2.0**-15, 2.0**-14, 1.0, 0.0])
    series = Evidence(make_run(tmp_path, [info], [Step(tensors={info.slot: values})])).series(
        info.slot
    )
    assert series.flushed[0] == pytest.approx(1 / 5)
    assert series.subnormal[0] == pytest.approx(2 / 5)
    assert series.zeros[0] == pytest.approx(1 / 6)


def test_amax_only_rows_know_nothing_else(tmp_path):
    info = slot("a", "grad_output")
    scaled = {"loss_scale_before": 8.0}
    steps = [Step(scaled, {info.slot: spread(4.0)}, full=number % 2 == 0) for number in range(4)]
    series = Evidence(make_run(tmp_path, [info], steps)).series(info.slot)
    assert series.full.tolist() == [True, False, True, False]
    assert series.amax.tolist() == [4.0] * 4
    assert series.unscaled_amax.tolist() == [0.5] * 4
    assert np.isnan(series.rms).tolist() == [False, True, False, True]
    assert np.isnan(series.zeros).tolist() == [False, True, False, True]
    assert len(series.fully) == 2


def test_casts_are_shares_of_what_was_cast(tmp_path):
    info = slot("a", "input", 0, "bfloat16", "e4m3")
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    step = Step(tensors={info.slot: values}, casts={info.slot: Cast("e4m3", 2.0, 1, 3)})
    series = Evidence(make_run(tmp_path, [info], [step])).series(info.slot)
    assert (series.cast_scale[0], series.cast_flushed[0], series.cast_saturated[0]) == (
        2,
        0.25,
        0.75,
    )


def test_steps_tell_a_measured_nan_from_a_missing_number(tmp_path):
    losses = [1.0, math.nan, None]
    run = make_run(tmp_path, [], [Step({"loss": loss, "grad_norm": None}) for loss in losses])
    steps = Evidence(run).steps
    assert steps.loss_known.tolist() == [True, True, False]
    assert np.isnan(steps.loss).tolist() == [False, True, True]
    assert not steps.grad_norm_known.any()


def test_a_resumed_run_is_read_as_one(tmp_path):
    info = slot("a", "input")
    for first, value in ((0, 1.0), (2, 5.0)):
        with Recorder.open(tmp_path, precision="16-mixed", device="cpu", arguments={}) as recorder:
            recorder.describe([info])
            for number in range(first, first + 4):
                step = Step(tensors={info.slot: spread(value)})
                recorder.write(snapshot(number, step, {info.slot: info}))
    series = Evidence(open_run(tmp_path)).series(info.slot)
    assert series.step.tolist() == list(range(6))
    assert series.amax.tolist() == [1.0, 1.0, 5.0, 5.0, 5.0, 5.0]


def test_a_run_without_rows_has_none(tmp_path):
    evidence = Evidence(make_run(tmp_path, layers(1), [Step()]))
    assert len(evidence.series("net.0:input")) == 0
    assert list(evidence.by_role("input")) == []
    assert evidence.series("unknown").fully.step.tolist() == []


def test_progress_counts_every_row(tmp_path):
    infos = layers(1)
    run = make_run(
        tmp_path, infos, [Step(tensors={i.slot: spread(1.0) for i in infos}) for _ in range(3)]
    )
    told = []
    Evidence(run, told.append)
    assert sum(told) == run.rows("tensors") == 15


def test_tables_are_grouped_by_what_they_are_about(tmp_path):
    def update(storage, swallowed):
        numbers = (9, 9, 9, 0.1, swallowed, None, None, None, None)
        lost = storage == "bf16"
        return Update("w:update", storage, *numbers, lost=lost, intended="exact")

    with Recorder.open(tmp_path, precision="16-mixed", device="cpu", arguments={}) as recorder:
        for number in range(2):
            recorder.write(
                Snapshot(
                    number,
                    StepScalars(),
                    updates=(update("bf16", 0.5 + number), update("fp16", None)),
                    states=(OptimizerState("w:exp_avg", "float32", 9, eps=1e-8),),
                )
            )
    evidence = Evidence(open_run(tmp_path))
    assert list(evidence.lost_updates) == [("w:update", "bf16")]
    assert evidence.lost_updates["w:update", "bf16"]["swallowed"].tolist() == [0.5, 1.5]
    later = Evidence(open_run(tmp_path), first=1)
    assert later.lost_updates["w:update", "bf16"]["swallowed"].tolist() == [1.5]
    assert later.steps.step.tolist() == [1]
    assert evidence.states[("w:exp_avg",)]["step"].tolist() == [0, 1]


def test_what_is_found_once_is_not_looked_for_again(tmp_path):
    evidence = Evidence(make_run(tmp_path, [], [Step()]))
    calls = []

    def count(_):
        calls.append(1)
        return len(calls)

    assert (evidence.once(count), evidence.once(count)) == (1, 1)


def test_rows_read_anew_are_those_of_the_steps(tmp_path):
    info = slot("a", "grad_output")
    values = [spread(float(i + 1)) for i in range(4)]
    run = make_run(tmp_path, [info], [Step(tensors={info.slot: value}) for value in values])
    merged = Evidence(run).totals_at([1, 3]).by_slot()[info.slot].stats
    assert replace(merged, dtype="float32") == tensor_stats(values[1]).merge(
        tensor_stats(values[3])
    )


@given(st.sets(st.integers(0, 99)).map(sorted), st.integers(2, 9))
def test_a_sample_of_steps_is_spread_evenly(steps, n):
    sample = evenly(steps, n)
    assert sample == sorted(set(sample))
    assert set(sample) <= set(steps)
    assert len(sample) == min(n, len(steps))
    assert not steps or (sample[0], sample[-1]) == (steps[0], steps[-1])
