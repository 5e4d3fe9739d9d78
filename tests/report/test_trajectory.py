"""Skips and their culprits, a collapse, what numwatch holds in memory."""

import pytest
from summary_builders import log_normal, rows, slot
from weight_builders import record

from numwatch import open_run, tensor_stats
from numwatch.recipes import Collapse
from numwatch.report import summarize
from numwatch.report.text import bytes_text
from numwatch.report.trajectory import collapse_of
from numwatch.report.trajectory_lines import collapse_line, skips_line
from numwatch.snapshot import Snapshot, StepScalars

INFOS = [
    slot("embed", "output", order=0),
    slot("fc", "input", order=1),
    slot("fc", "grad_weight", order=1),
    slot("head", "weight", order=2),
]


def skipped_run(directory, *steps, infos=INFOS):
    record(directory, [Snapshot(i, scalars) for i, scalars in enumerate(steps)], infos)
    return summarize(open_run(directory))


def test_a_skip_without_rows_names_the_parameters_as_backward_meets_them(tmp_path):
    named = ("loose.weight", "embed.weight", "fc.bias", "fc.weight", "head.weight", "loose")
    step = StepScalars(skipped=True, nonfinite_parameters=named)
    summary = skipped_run(tmp_path, StepScalars(), step)
    assert summary.skips.parameters == (
        *("fc.bias", "fc.weight", "head.weight", "embed.weight"),
        *("loose.weight", "loose"),
    )
    assert skips_line(summary.skips, 2).plain == (
        "skipped     1 of 2 steps, last 1: gradient of fc.bias held nan/inf, then 5 more parameters"
    )


@pytest.mark.parametrize(
    ("named", "text"),
    [
        (None, "last 0 (its tensors were not recorded)"),
        ((), "last 0 (its tensors were not recorded)"),
        (("fc.bias",), "last 0: gradient of fc.bias held nan/inf"),
        (("fc.bias", "fc.weight"), "of fc.weight held nan/inf, then 1 more parameter"),
    ],
)
def test_what_is_said_of_a_skip_follows_from_what_is_known(tmp_path, named, text):
    named = named and tuple(sorted(named, reverse=True))
    step = StepScalars(skipped=True, nonfinite_parameters=named)
    summary = skipped_run(tmp_path, step)
    assert skips_line(summary.skips, 1).plain.endswith(text)


def test_slots_name_a_culprit_before_parameters_do(tmp_path):
    import torch

    broken = tensor_stats(torch.tensor([1.0, torch.inf]))
    infos = [slot("fc", "grad_output", order=0)]
    step = StepScalars(skipped=True, nonfinite_parameters=("fc.weight",))
    record(tmp_path, [Snapshot(0, step, rows([(infos[0], broken, None)]))], infos)
    skips = summarize(open_run(tmp_path)).skips
    assert (skips.nonfinite, skips.parameters) == ((("fc:grad_output", 1),), ("fc.weight",))
    assert skips_line(skips, 1).plain.endswith("last 0: fc:grad_output held 1 nan/inf")


def test_rows_without_a_culprit_leave_the_word_to_parameters(tmp_path):
    infos = [slot("fc", "grad_output", order=0)]
    step = StepScalars(skipped=True, nonfinite_parameters=("other.weight",))
    record(tmp_path, [Snapshot(0, step, rows([(infos[0], log_normal(0, 1.0), None)]))], infos)
    line = skips_line(summarize(open_run(tmp_path)).skips, 1).plain
    assert line.endswith("last 0: gradient of other.weight held nan/inf")


def test_the_last_collapse_counts_and_belongs_to_its_epoch(tmp_path):
    snapshots = [Snapshot(i, StepScalars(epoch=i // 4, skipped=True)) for i in range(8)]
    details = {"scale": 64.0, "skipped_in_a_row": 10, "zero_at_step": 161}
    events = [("collapse", 2, details), ("collapse", 3, {**details, "zero_at_step": None})]
    record(tmp_path, snapshots, events=events)
    run = open_run(tmp_path)
    assert summarize(run).collapse == Collapse(3, 64.0, 10, None)
    assert summarize(run, epoch=0).collapse == Collapse(3, 64.0, 10, None)
    assert summarize(run, epoch=1).collapse is None
    assert collapse_of([], run.steps()) is None


@pytest.mark.parametrize(
    ("later", "told"),
    [
        (StepScalars(skipped=True), Collapse(3, 64.0, 10, 161)),
        (StepScalars(), None),
        (StepScalars(loss_scale_after=0.0), Collapse(3, 0.0, 10, 161)),
    ],
)
def test_a_collapse_that_recovered_is_no_news_and_one_at_its_end_says_so(tmp_path, later, told):
    details = {"scale": 64.0, "skipped_in_a_row": 10, "zero_at_step": 161}
    snapshots = [Snapshot(3, StepScalars(skipped=True)), Snapshot(4, later)]
    record(tmp_path, snapshots, events=[("collapse", 3, details)])
    assert summarize(open_run(tmp_path)).collapse == told


@pytest.mark.parametrize(
    ("collapse", "end"),
    [
        (Collapse(13, 16.0, 12, 166), " to 16: it reaches 0 at step 166 if every step is skipped"),
        (Collapse(13, 16.0, 12, None), " to 16"),
        (Collapse(13, 0.0, 12, None), " to 0 since: all gradients are 0 or NaN from there on"),
    ],
)
def test_a_collapse_says_when_it_ends(collapse, end):
    line = collapse_line(collapse)
    said = "collapse    12 steps skipped in a row at step 13, the loss scale down"
    assert line.plain == said + end
    assert {str(span.style) for span in line.spans} == {"bold red"}


def test_memory_is_the_most_there_was(tmp_path):
    snapshots = [Snapshot(i, StepScalars(epoch=i)) for i in range(3)]
    events = [("memory", 0, {"bytes": 5}), ("memory", 1, {"bytes": 9}), ("memory", 2, {"bytes": 7})]
    record(tmp_path, snapshots, events=events)
    run = open_run(tmp_path)
    assert (summarize(run).memory, summarize(run, epoch=0).memory) == (9, 9)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (340_000, "340 kB"),
        (1_240_000, "1.2 MB"),
        (12_400_000, "12 MB"),
        (1.2e9, "1.2 GB"),
    ],
)
def test_bytes_text(size, text):
    assert bytes_text(size) == text
