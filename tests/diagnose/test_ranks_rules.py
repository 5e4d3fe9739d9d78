"""What is told of several ranks."""

from dataclasses import replace

import torch
from diagnosis_builders import Step, layers, snapshot

from numwatch import diagnose, open_run
from numwatch.rank_rows import RankRow
from numwatch.record import Recorder, events_of
from numwatch.snapshot import SlotInfo


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


def test_a_replica_that_one_rank_counted_is_not_on_that_rank_alone(tmp_path):
    """All ranks hold the weight under DDP, and the first has its row."""
    infos = layers(1, "float32", "fp32")
    by_name = {info.slot: info for info in infos}
    bad = torch.full((8,), torch.nan)
    steps = []
    for number in range(4):
        tensors = {"net.0:weight": bad if number == 2 else torch.ones(8)}
        ranks = (RankRow("net.0:weight", 0, *((1, 0) if number == 2 else (0, None))),)
        scalars = {"loss": float("nan" if number == 2 else 1)}
        steps.append(replace(snapshot(number, Step(scalars, tensors), by_name), ranks=ranks))
    (finding,) = diagnose(record(tmp_path, steps, infos))
    assert finding.rule == "nan-in-parameter"
    assert "rank" not in finding.cause


def reduced_run(directory, before, after, steps=4):
    infos = [
        SlotInfo("net:grad_weight", "net", "grad_weight", "Linear", (64,), "float16", "fp16", 0),
        SlotInfo("net.weight:grad_reduced", "net.weight", "grad_reduced", "SGD", (64,), "float16"),
    ]
    by_name = {info.slot: info for info in infos}
    step = Step(tensors={"net:grad_weight": before, "net.weight:grad_reduced": after})
    return record(directory, [snapshot(number, step, by_name) for number in range(steps)], infos)


def test_a_reduction_that_flushes_is_told(tmp_path):
    before = torch.full((64,), 2.0**-20)
    after = before.clone()
    after[:16] = 0
    (finding,) = diagnose(reduced_run(tmp_path, before, after))
    assert (finding.rule, finding.slot) == ("reduction-flushes", "net.weight:grad_reduced")
    assert finding.evidence[0].value == 0.25
    assert "reduce_dtype=torch.float32" in finding.cure


def test_zeros_that_were_there_before_are_not_the_reductions(tmp_path):
    before = torch.full((64,), 2.0**-20)
    before[:16] = 0
    found = diagnose(reduced_run(tmp_path, before, before))
    assert not [each for each in found if each.rule.startswith("reduction")]


def test_a_reduction_that_overflows_is_told(tmp_path):
    before = torch.full((64,), 60000.0)
    after = before.clone()
    after[0] = torch.inf
    found = {each.rule: each for each in diagnose(reduced_run(tmp_path, before, after))}
    assert found["reduction-overflows"].severity == "critical"
    assert found["reduction-overflows"].evidence[0].value == 60000.0
