"""What is told of several ranks."""

from dataclasses import replace

import torch
from diagnosis_builders import Step, layers, snapshot

from numwatch import diagnose, open_run
from numwatch.rank_rows import RankRow
from numwatch.record import Recorder, events_of


def record(directory, snapshots, infos):
    with Recorder.open(directory, precision="16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe(infos)
        for each in snapshots:
            recorder.write(each)
            for kind, details in events_of(each):
                recorder.event(kind, each.step, **details)
    return open_run(directory)


def test_ranks_that_skip_different_steps_are_a_critical_finding(tmp_path):
    infos = layers(1)
    steps = [
        replace(snapshot(number, Step(), {}), differing=("skipped",) if number == 2 else ())
        for number in range(4)
    ]
    (finding,) = diagnose(record(tmp_path, steps, infos))
    assert (finding.rule, finding.severity, finding.step) == ("ranks-differ", "critical", 2)
    assert "do not agree on skipped from step 2 on" in finding.cause
    assert "ShardedGradScaler" in finding.cure


def test_the_rank_that_an_inf_came_up_on_is_named(tmp_path):
    infos = layers(1, "float32", "fp32")
    by_name = {info.slot: info for info in infos}
    bad = torch.ones(8)
    bad[3] = torch.inf
    steps = []
    for number in range(4):
        failing = number == 2
        tensors = {"net.0:input": bad if failing else torch.ones(8)}
        step = Step({"loss": float("nan" if failing else 1)}, tensors)
        ranks = (RankRow("net.0:input", 0, *((1, 5) if failing else (0, None))),)
        steps.append(replace(snapshot(number, step, by_name), ranks=ranks))
    (finding,) = diagnose(record(tmp_path, steps, infos))
    assert (finding.rule, finding.slot) == ("nan-in-data", "net.0:input")
    assert finding.cause.endswith(", on rank 5 alone")
