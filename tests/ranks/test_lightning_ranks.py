"""Lightning's strategies under `NumericsMonitor`: training is the same, and all is counted once."""

import json

import pytest
import torch
from launch import run_ranks
from torch.distributed.tensor import DTensor
from versions import FSDP2, needs_fsdp2

import numwatch

ON_ALL = ("ddp", "ddp_bf16", "ddp_fp16", "tensor_parallel")
ON_SHARDS = ("fsdp2", "validated")
STRATEGIES = (*ON_ALL, *(pytest.param(each, marks=needs_fsdp2) for each in ON_SHARDS))
BATCH, IN, HIDDEN, OUT = 8, 8, 16, 4


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("strategies")
    strategies = ON_ALL + ON_SHARDS * FSDP2
    outputs = run_ranks("lightning_ranks.py", 2, directory, *strategies, timeout=280)
    told = [
        dict(json.loads(line) for line in output.splitlines() if line.startswith('["'))
        for output in outputs
    ]
    return directory, told


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_on_every_rank_is_bitwise_that_without_numwatch(fits, strategy):
    assert [told[strategy] for told in fits[1]] == [True, True]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_tensor_counts_once(fits, strategy):
    run = numwatch.open_run(fits[0] / strategy)
    assert run.problems == []
    assert run.device == "cpu on 2 ranks"
    numel = {row["slot"]: row["numel"] for row in run.tensors(first=5, last=5).to_pylist()}
    batch = BATCH if strategy == "tensor_parallel" else 2 * BATCH  # whose ranks share a batch
    last = "net.3" if strategy == "tensor_parallel" else "net.4"
    known = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs  # not all in torch 2.6
    seen_input = strategy != "tensor_parallel" or torch.ops.aten.alias.default in known
    expected = {
        "net.0:input": batch * IN,
        "net.0:weight": IN * HIDDEN,
        "net.0:output": batch * HIDDEN,
        "net.0:grad_output": batch * HIDDEN,
        f"{last}:input": batch * HIDDEN,
        f"{last}:weight": HIDDEN * OUT,
        f"{last}:output": batch * OUT,
        f"{last}:grad_output": batch * OUT,
        **({f"{last}:grad_input": batch * HIDDEN} if seen_input else {}),
        "net.0.weight:grad_reduced": IN * HIDDEN,
        f"{last}.weight:grad_reduced": HIDDEN * OUT,
        f"{last}.bias:grad_reduced": OUT,
        "net.0.weight:update": IN * HIDDEN,
        f"{last}.bias:update": OUT,
        f"{last}.weight:exp_avg_sq": HIDDEN * OUT,
    }
    assert {slot: numel[slot] for slot in expected} == expected


def test_skips_and_scales_are_those_of_all_ranks(fits):
    run = numwatch.open_run(fits[0] / "ddp_fp16")
    steps = run.steps().to_pylist()
    skipped = [step["skipped"] for step in steps]
    assert skipped[0]
    assert not skipped[-1]
    for step in steps:
        factor = step["loss_scale_after"] / step["loss_scale_before"]
        assert (factor == 0.5) == step["skipped"] == step["found_inf"]
    assert not [event for event in run.events() if event["kind"] == "differing"]
    for row in run.tensors(role="grad_output").to_pylist():
        assert row["loss_scale"] == steps[row["step"]]["loss_scale_before"]
    reduced = run.tensors(slot="net.0.weight:grad_reduced").to_pylist()
    assert {row["loss_scale"] for row in reduced} == {1.0}  # seen after unscaling


@needs_fsdp2
def test_weights_that_a_validation_has_gathered_are_still_shards(fits):
    run = numwatch.open_run(fits[0] / "validated")
    for slot, numel in (
        ("net.0:weight", IN * HIDDEN),
        ("net.0.weight:update", IN * HIDDEN),
        ("net.0:grad_weight", 2 * IN * HIDDEN),
    ):
        rows = run.tensors(slot=slot).to_pylist()
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert {row["numel"] for row in rows} == {numel}
        assert len(rows) == 6
