"""DESIGN's rules as they must hold in every cell of the table, a function each."""

import numpy as np
import pytest
import torch
from trainer_witness import are_same

import numwatch
from numwatch.snapshot import ROLES, role_of

FORMATS = {
    "32-true": "fp32",
    "bf16-mixed": "bf16",
    "16-mixed": "fp16",
    "bf16-true": "bf16",
    "16-true": "fp16",
    "fp8": "e4m3",
}
QUIET = {"start", "memory"}
"""Kinds of events that mean nothing bad."""


def training_is_bitwise_the_same(bare, watched):
    for name in bare.numbers:
        assert are_same(bare.numbers[name], watched.numbers[name]), name
    assert are_same(bare.random, watched.random)
    assert bare.numbers["losses"], "the witness saw no loss"


def no_trace_is_left(bare, watched):
    for kind, expected in bare.anatomy.items():
        assert watched.anatomy[kind] == expected, kind
    assert watched.threads == bare.threads


def nothing_is_kept_alive(bare, watched):
    assert watched.alive == bare.alive
    assert len(watched.alive) > 1
    assert watched.living == bare.living


def every_slot_is_seen(case, precision, run):
    steps = run.steps().to_pydict()
    assert steps["step"] == list(case.steps)
    tensors = run.tensors().to_pydict()
    seen = {}
    for step, slot, numel in zip(*(tensors[n] for n in ("step", "slot", "numel")), strict=True):
        assert numel > 0
        if role_of(slot) in ROLES:  # the rest is the optimizer's state
            seen.setdefault(slot, {})[step] = numel
    assert sorted(seen) == sorted(case.net.slots)
    for slot, numels in seen.items():
        if slot not in case.net.seldom:
            assert list(numels) == list(case.steps), slot
        if slot in case.net.numels:
            calls = 1 if slot.endswith(":weight") else case.calls
            assert set(numels.values()) == {calls * case.net.numels[slot]}, slot
    formats = {
        info.format
        for slot, info in run.slots.items()
        if slot.endswith(":input") and slot in case.net.slots
    }
    assert formats == {FORMATS[precision]}


def every_update_is_seen(run, model):
    wanted = {name for name, p in model.named_parameters() if p.grad is not None}
    found = {slot.removesuffix(":update") for slot in run.updates()["slot"].to_pylist()}
    assert found >= wanted
    assert found <= {name for name, p in model.named_parameters() if p.requires_grad}


def scalars_are_those_of_the_run(case, precision, run, watched):
    steps = run.steps().to_pydict()
    scaled = precision == "16-mixed"
    assert set(steps["loss_scale_before"]) == {2.0**16 if scaled else 1.0}
    assert not any(steps["skipped"])
    assert all(norm > 0 and np.isfinite(norm) for norm in steps["grad_norm"])
    if case.losses:
        losses = torch.stack(watched.numbers["losses"]).double()
        of_steps = losses.view(len(case.steps), -1).mean(1).tolist()
        assert steps["loss"] == pytest.approx(of_steps, rel=1e-2)


def nothing_is_said_without_cause(run):
    assert {event["kind"] for event in run.events()} <= QUIET
    assert [f for f in numwatch.diagnose(run) if f.severity == "critical"] == []
