import re
import subprocess
import sys
from math import log2

import numpy as np
import pytest
import torch
from tb_builders import cast, infos, powers, rows_of, snapshot
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from torch.utils.tensorboard import SummaryWriter
from weight_builders import STORAGES, shadow, state, update

from numwatch.report.scalars import scalars
from numwatch.report.tb_curation import NAMED_SLOTS, PARAMETER_HISTOGRAMS
from numwatch.report.tb_events import log2_histogram
from numwatch.report.tensorboard import TensorBoardView
from numwatch.snapshot import ROLES, Snapshot, StepScalars
from numwatch.stats import AMAX, AMIN, BINADES, COUNTS, NANS, NUMEL, REALS, ZEROS, tensor_stats
from numwatch.tensor_rows import Rows

GRADIENT = "numwatch_log2/a/grad_output_scaled"


@pytest.fixture
def write(tmp_path):
    """Writes snapshots at their steps and returns the directory, closed."""

    def write(snapshots, slots):
        with SummaryWriter(tmp_path) as writer:
            view = TensorBoardView(writer)
            for seen in snapshots:
                view.write(seen, slots, seen.step)
        return tmp_path

    return write


def events_of(path):
    """The events with values, as they lie in the file."""
    (file,) = path.glob("events.out.*")
    return [event for event in EventFileLoader(str(file)).Load() if event.summary.value]


def provider_of(path):
    """What TensorBoard's own pages read from, and its one experiment."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(path))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(path))


def read_tensors(path, plugin, tag):
    """The points of one tag, by step."""
    read = provider_of(path).read_tensors(
        RequestContext(),
        experiment_id="",
        plugin_name=plugin,
        downsample=1000,
        run_tag_filter=RunTagFilter(tags=[tag]),
    )
    return {point.step: point.numpy for point in read.get(".", {}).get(tag, [])}


def read_scalars(path):
    """Tag → step → value."""
    read = provider_of(path).read_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000
    )
    return {tag: {point.step: point.value for point in points} for tag, points in read["."].items()}


def layout_of(path):
    """The charts of the custom scalars tab, by category and title."""
    points = read_tensors(path, "custom_scalars", CONFIG_SUMMARY_TAG)
    assert len(points) == 1
    layout = layout_pb2.Layout.FromString(next(iter(points.values())).item())
    return {c.title: {chart.title: chart for chart in c.chart} for c in layout.category}


def test_scalars_read_back_are_those_that_were_written(write):
    slots = {f"a:{role}": powers({-3: 5, 2: 1}, zeros=1) for role in ROLES}
    run = [snapshot(step, slots, loss_scale=2.0**step, grad_norm=0.5) for step in (1, 4, 9)]
    read = read_scalars(write(run, infos(slots)))
    assert {step for points in read.values() for step in points} == {1, 4, 9}
    for seen in run:
        expected = scalars(seen, infos(slots), slots) | {"numwatch/skipped_steps_total": 0.0}
        assert {tag: points[seen.step] for tag, points in read.items()} == pytest.approx(expected)


def test_one_event_a_step_and_steps_rise(write):
    slots = {"a:output": powers({0: 1}), "a:grad_output": powers({0: 1})}
    run = [
        snapshot(0),
        snapshot(1, slots, full=False),
        snapshot(2, slots),
        snapshot(2, slots),
        snapshot(1, slots),
        snapshot(7, slots),
    ]
    events = events_of(write(run, infos(slots)))
    assert [event.step for event in events] == [0, 1, 2, 7]
    for event in events:
        tags = [value.tag for value in event.summary.value]
        assert len(tags) == len(set(tags))


def test_histogram_is_the_binades_trimmed_one_bucket_each(write):
    counts = {-20: 7, -19: 0, -18: 3, 4: 1}
    slots = {"a:grad_output": powers(counts, zeros=100, nans=2)}
    path = write([snapshot(5, slots, loss_scale=8.0)], infos(slots))
    (buckets,) = read_tensors(path, "histograms", GRADIENT).values()
    assert [tuple(bucket) for bucket in buckets] == [
        (e, e + 1, counts.get(e, 0)) for e in range(-20, 5)
    ]


def test_histogram_message_in_log2_units():
    binades = np.zeros(BINADES, dtype=np.int64)
    binades[127 - 3], binades[127 + 1] = 4, 2
    histo = log2_histogram("h", binades).value[0].histo
    assert (histo.min, histo.max, histo.num) == (-3.0, 2.0, 6.0)
    assert list(histo.bucket_limit) == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert list(histo.bucket) == [4.0, 0.0, 0.0, 0.0, 2.0]
    assert histo.sum == 4 * -2.5 + 2 * 1.5
    assert histo.sum_squares == 4 * 2.5**2 + 2 * 1.5**2


@pytest.mark.parametrize("exponent", [-127, -126, 0, 127])
def test_histogram_of_a_single_binade_has_one_bucket_of_full_width(exponent):
    binades = np.zeros(BINADES, dtype=np.int64)
    binades[exponent + 127] = 1
    histo = log2_histogram("h", binades).value[0].histo
    assert (histo.min, list(histo.bucket_limit), histo.max) == (
        exponent,
        [exponent + 1],
        exponent + 1,
    )


def test_slot_without_a_finite_nonzero_element_has_no_histogram(write):
    slots = {"a:output": powers({}, zeros=5, nans=1)}
    path = write([snapshot(0, slots)], infos(slots))
    assert not [v for e in events_of(path) for v in e.summary.value if "log2/" in v.tag]


def test_histogram_of_a_role_merges_its_slots(write):
    slots = {
        "a:output": powers({0: 2}),
        "b:output": powers({0: 1, 2: 5}),
        "a:input": powers({9: 1}),
    }
    path = write([snapshot(0, slots)], infos(slots))
    (buckets,) = read_tensors(path, "histograms", "numwatch_log2/output").values()
    assert buckets.tolist() == [[0, 1, 3], [1, 2, 0], [2, 3, 5]]


def test_histogram_of_a_real_tensor_keeps_what_add_histogram_loses(write):
    # SummaryWriter.add_histogram goes through FP16: 2^-66 would be 0 and 2^17 infinite.
    x = torch.tensor([2.0**-66, 1.0, -(2.0**17), torch.nan], dtype=torch.bfloat16)
    slots = {"a:grad_output": tensor_stats(x)}
    path = write([snapshot(0, slots)], infos(slots, "bf16", "bfloat16"))
    (buckets,) = read_tensors(path, "histograms", GRADIENT).values()
    assert {int(left): count for left, _, count in buckets if count} == {-66: 1, 0: 1, 17: 1}


def test_amax_only_and_bare_steps_have_neither_histograms_nor_layout(write):
    slots = {"a:output": powers({0: 1})}
    path = write([snapshot(0), snapshot(1, slots, full=False)], infos(slots))
    tags = {value.tag for event in events_of(path) for value in event.summary.value}
    assert not [t for t in tags if "numwatch_log2" in t or t == CONFIG_SUMMARY_TAG]
    assert "numwatch_roles/output/amax_log2_worst" in tags


def test_margin_charts_name_tags_that_stand_at_the_very_same_steps(write):
    slots = {f"a:{role}": powers({0: 1}) for role in ROLES}
    dead = slots | {"a:grad_output": powers({}, zeros=4)}
    run = [snapshot(i, s, full=i % 2 == 0) for i, s in enumerate([slots, slots, dead, dead, slots])]
    path = write(run, infos(slots))
    read = read_scalars(path)
    margins = [
        chart.margin.series[0]
        for charts in layout_of(path).values()
        for chart in charts.values()
        if chart.HasField("margin")
    ]
    window, *others = margins
    assert window.value == "numwatch_window/loss_scale_log2"
    steps = {tag: read[tag].keys() for tag in (window.value, window.lower, window.upper)}
    # Of steps without full rows nothing is known, nor of those whose gradients are zero.
    assert set(map(frozenset, steps.values())) == {frozenset({0, 2, 4})}
    assert len(others) == 12
    for series in others:
        value, lower, upper = read[series.value], read[series.lower], read[series.upper]
        assert value.keys() == lower.keys() == upper.keys()
        assert value.keys() == ({0, 1, 4} if "grad_output" in series.value else {0, 1, 2, 3, 4})
        assert set(lower.values()) == {-14.0}
        assert list(upper.values()) == pytest.approx([log2(65504)] * len(upper))


def test_line_charts_select_the_tags_they_speak_of(write):
    slots = {"a.fc:output": powers({0: 1}), "a.fc:grad_output": powers({0: 1}, zeros=1)}
    table = infos(["a.fc:output"]) | infos(["a.fc:grad_output"], dtype="float16")
    path = write([snapshot(0, slots), snapshot(1, slots)], table)
    tags = list(read_scalars(path))

    def shown(category, title):
        (pattern,) = layout_of(path)[category][title].multiline.tag
        # As CustomScalarsPlugin.scalars_impl selects them.
        return {tag for tag in tags if re.match(pattern, tag)}

    assert shown("numwatch: loss scale", "skipped steps") == {"numwatch/skipped_steps_total"}
    assert shown("numwatch: worst slot of each role", "flushed") == {
        "numwatch_roles/output/flushed_worst",
        "numwatch_roles/grad_output_scaled/flushed_estimate_worst",
    }
    assert shown("numwatch: named tensors", "headroom (bits)") == {
        "numwatch_tensors/a.fc/output/headroom_bits",
        "numwatch_tensors/a.fc/grad_output_scaled/headroom_bits",
    }


def test_limits_of_a_cast_follow_its_scale(write):
    slots = {"a:input": powers({0: 8})}
    run = [
        snapshot(step, slots, casts={"a:input": cast(0, 0, scale=2.0**step)}) for step in range(3)
    ]
    read = read_scalars(write(run, infos(slots, "bf16")))
    assert read["numwatch_tensors/a/input/max_log2"] == pytest.approx(
        {step: log2(448) - step for step in range(3)}
    )


def test_overflow_writes_counts_and_no_value_that_is_not_finite(write):
    slots = {"a:grad_output": powers({}, nans=3, posinfs=4)}
    run = [snapshot(0, slots, grad_norm=float("inf"), found_inf=True, skipped=True)]
    path = write(run, infos(slots))
    read = read_scalars(path)
    assert read["numwatch_tensors/a/grad_output_scaled/nonfinite"] == {0: 7.0}
    assert read["numwatch/nonfinite_slots"] == read["numwatch/skipped"] == {0: 1.0}
    assert read["numwatch/skipped_steps_total"] == {0: 1.0}
    assert all(np.isfinite(v) for points in read.values() for v in points.values())


@pytest.mark.slow
def test_thousand_slots_and_three_hundred_parameters_stay_below_200_tags(tmp_path):
    rng = np.random.default_rng(0)
    slots = tuple(f"blocks.{i}.fc:{role}" for i in range(167) for role in ROLES)[:1000]
    parameters = [f"blocks.{i}.fc.weight" for i in range(300)]
    kinds = ("update", "exp_avg", "exp_avg_sq", "master", "momentum_buffer")
    theirs = tuple(f"{name}:{kind}" for name in parameters for kind in kinds)
    # Half of each role is already in FP16, so that every role has both kinds of flushed.
    table = infos(slots[: len(slots) // 2]) | infos(slots[len(slots) // 2 :], dtype="float16")
    tags = set()
    with SummaryWriter(tmp_path) as writer:
        view = TensorBoardView(writer)
        for step in range(200):
            full = step % 25 == 0
            rows = random_rows(rng, slots + theirs if full else slots, full=full)
            weights = of_parameters(rng, parameters, slots) if full else {}
            view.write(Snapshot(step, StepScalars(grad_norm=1.0), rows, **weights), table, step)
    events = events_of(tmp_path)
    assert [event.step for event in events] == list(range(200))
    by_step = [{value.tag for value in event.summary.value} for event in events]
    for event_tags in by_step:
        tags |= event_tags
    assert 150 < len(tags) <= 200
    assert sum(CONFIG_SUMMARY_TAG in event_tags for event_tags in by_step) == 1
    # The tags of the second half of the run are those of the first: none came, none went.
    assert set.union(*by_step[100:]) == set.union(*by_step[50:100])
    histograms = [tag for tag in tags if tag.startswith("numwatch_log2/")]
    assert len(histograms) == len(ROLES) + NAMED_SLOTS + PARAMETER_HISTOGRAMS
    groups = {tag.split("/")[0] for tag in tags}
    for group in ("updates", "parameters", "states", "window", "shadow"):
        assert f"numwatch_{group}" in groups


def of_parameters(rng, parameters, slots):
    """Updates, states and shadows with another worst parameter each time."""
    updates = tuple(
        update(name, storage, swallowed=rng.random(), deferred=rng.random())
        for name in parameters
        for storage in STORAGES
    )
    states = tuple(state(name, rms=2.0, below_eps=0.1, vanished=0.1) for name in parameters)
    shadows = tuple(shadow(slot) for slot in slots if "grad" in slot)
    return {"updates": updates, "states": states, "shadows": shadows}


def random_rows(rng, slots, *, full):
    """Rows in which another slot is the worst each time."""
    n = len(slots)
    counts = np.zeros((n, COUNTS), dtype=np.int64)
    reals = np.zeros((n, REALS))
    low = rng.integers(-40, -10, n)
    high = rng.integers(0, 18, n)
    reals[:, AMAX], reals[:, AMIN] = 1.5 * 2.0**high, 1.5 * 2.0**low
    if full:
        counts[np.arange(n), low + 127] = 10
        counts[np.arange(n), high + 127] = 10
        counts[:, ZEROS] = rng.integers(0, 5, n)
        counts[:, NANS] = rng.integers(0, 2, n)
    counts[:, NUMEL] = 20 + counts[:, ZEROS] + counts[:, NANS]
    return Rows(slots, counts, reals, np.ones(n), (None,) * n, full)


def test_rows_are_left_as_they_were(write):
    stats = {"a:output": powers({0: 1}), "b:output": powers({3: 2})}
    rows = rows_of(stats)
    before = rows.counts.copy(), rows.reals.copy()
    write([Snapshot(0, StepScalars(), rows)], infos(stats))
    assert (rows.counts == before[0]).all()
    assert (rows.reals == before[1]).all()


@pytest.mark.parametrize("module", ["numwatch", "numwatch.report"])
def test_tensorboard_is_imported_by_its_own_module_alone(module):
    code = f"import sys, {module}; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parameters_have_a_histogram_a_role_and_no_margins(write):
    slots = {
        "fc:grad_output": powers({0: 1}),
        "fc.weight:exp_avg": powers({-9: 2}),
        "head.weight:exp_avg": powers({-8: 3}),
        "fc.weight:update": powers({-5: 1}),
    }
    path = write([snapshot(0, slots), snapshot(1, slots)], infos(slots))
    for buckets in read_tensors(path, "histograms", "numwatch_log2/exp_avg").values():
        assert buckets.tolist() == [[-9, -8, 2], [-8, -7, 3]]
    assert not [tag for tag in read_scalars(path) if "exp_avg" in tag or "/update/" in tag]
    charts = [title for category in layout_of(path).values() for title in category]
    assert not [title for title in charts if "exp_avg" in title]
