"""The record of several ranks is the record of one process on the joined batch."""

import math
from pathlib import Path

import pytest
import torch
from exact import LR, exact_data, exact_loss, exact_model
from launch import run_ranks
from scenarios import EVERY_STEP
from versions import FSDP2, needs_fsdp2

import numwatch
from numwatch.snapshot import role_of

COUNTS = ("numel", "zeros", "nans", "posinfs", "neginfs", "pow2s", "binade_first", "binades")
REALS = ("amax", "amin", "sum", "sumsq")
OF_ONE_RANKS_LOSS = ("grad_output", "grad_input", "grad_weight")
"""Roles whose numbers come from the mean over a rank's own batch, not over all."""
SCENARIOS = ("ddp", pytest.param("fsdp2", marks=needs_fsdp2))


def joined_run(directory: Path, world: int, *, as_window: bool) -> numwatch.Run:
    """One process on the same data: in one batch, or with the ranks' batches as micro-batches."""
    model = exact_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.5)
    inputs, targets = exact_data(world=world)
    with numwatch.watch(model, optimizer, dir=directory, **EVERY_STEP) as watch:
        for x, y in zip(inputs, targets, strict=True):
            optimizer.zero_grad()
            batches = zip(x, y, strict=True) if as_window else [(x.flatten(0, 1), y.flatten(0, 1))]
            for part, target in batches:
                loss = exact_loss(model(part), target) / (world if as_window else 1)
                loss.backward()
                watch.add_loss(loss)
            optimizer.step()
            watch.step()
    return numwatch.open_run(directory)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def runs(request, tmp_path_factory):
    world = request.param
    directory = tmp_path_factory.mktemp("ranks")
    run_ranks("scenarios.py", world, directory, "ddp", *["fsdp2"] * FSDP2)
    return world, directory


@pytest.fixture(scope="module")
def joined(runs):
    world, directory = runs
    return {
        as_window: joined_run(directory / f"joined-{as_window}", world, as_window=as_window)
        for as_window in (False, True)
    }


def rows_of(run: numwatch.Run) -> dict:
    return {(row["step"], row["slot"]): row for row in run.tensors().to_pylist()}


def scaled_by(row: dict, factor: float) -> dict:
    """The row of the same tensors times a power of two."""
    shift = round(math.log2(factor))
    first = row["binade_first"] + (shift if row["binades"] else 0)
    powers = {"amax": 1, "amin": 1, "sum": 1, "sumsq": 2}
    reals = {name: row[name] * factor**power for name, power in powers.items()}
    return {**row, "binade_first": first, **reals}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_count_is_that_of_one_process_with_the_batches_as_a_window(runs, joined, scenario):
    world, directory = runs
    many, one = rows_of(numwatch.open_run(directory / scenario)), rows_of(joined[True])
    assert set(one) <= set(many)
    for (step, slot), row in one.items():
        factor = world if role_of(slot) in OF_ONE_RANKS_LOSS else 1
        expected, found = scaled_by(row, factor), many[step, slot]
        assert [found[name] for name in COUNTS] == [expected[name] for name in COUNTS], slot
        for name in REALS:
            assert found[name] == pytest.approx(expected[name], rel=1e-12), (slot, name)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_reduced_gradient_is_that_of_the_joined_batch(runs, joined, scenario):
    _, directory = runs
    many, one = rows_of(numwatch.open_run(directory / scenario)), rows_of(joined[False])
    weights = [key for key in one if role_of(key[1]) == "grad_weight"]
    assert len(weights) == 9
    for step, slot in weights:
        reduced = many[step, slot.replace(":grad_weight", ".weight:grad_reduced")]
        assert [reduced[name] for name in COUNTS] == [one[step, slot][name] for name in COUNTS]
        for name in REALS:
            assert reduced[name] == pytest.approx(one[step, slot][name], rel=1e-12)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scalars_updates_and_states_are_those_of_the_joined_batch(runs, joined, scenario):
    _, directory = runs
    many, one = numwatch.open_run(directory / scenario), joined[False]
    for found, expected in zip(many.steps().to_pylist(), one.steps().to_pylist(), strict=True):
        assert found["step"] == expected["step"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
        assert (found["skipped"], found["found_inf"]) == (False, False)
    for table in ("updates", "states"):
        measured = [_by_key(getattr(run, table)()) for run in (many, one)]
        assert measured[0].keys() == measured[1].keys() != set()
        for key, expected in measured[1].items():
            if scenario == "fsdp2" and key[-1] in ("e4m3", "e5m2"):
                continue  # whose scale is that of each rank's own sample
            found = measured[0][key]
            numbers = {name for name, value in expected.items() if isinstance(value, float)}
            for name in expected.keys() - numbers:
                assert found[name] == expected[name], (key, name)
            for name in numbers:
                assert found[name] == pytest.approx(expected[name], rel=1e-5), (key, name)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_replicas_that_are_the_same_are_not_told_apart(runs, scenario):
    run = numwatch.open_run(runs[1] / scenario)
    assert not [event for event in run.events() if event["kind"] == "unseen"]


def test_the_record_says_how_many_ranks_there_were(runs):
    world, directory = runs
    run = numwatch.open_run(directory / "ddp")
    assert run.device == f"cpu on {world} ranks"
    assert {run.slots["0:weight"].placement, run.slots["0:input"].placement} == {"replicated", None}
    if FSDP2:
        shards = numwatch.open_run(directory / "fsdp2")
        assert shards.slots["0:weight"].placement == "sharded"


def _by_key(table) -> dict:
    keyed = {}
    for row in table.to_pylist():
        del row["attempt"]
        keyed[row.pop("step"), row.pop("slot"), row.pop("storage", None)] = row
    return keyed


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixed")
    run_ranks("scenarios.py", 2, directory, "compressed", *["sharded_scaler"] * FSDP2)
    return directory


def test_what_averaging_in_fp16_flushes_is_seen(mixed):
    rows = rows_of(numwatch.open_run(mixed / "compressed"))
    flushed = 0
    for module in ("0", "2", "4"):
        before = rows[0, f"{module}:grad_weight"]
        after = rows[0, f"{module}.weight:grad_reduced"]
        flushed += after["zeros"] - before["zeros"] // 2
        assert before["amin"] < 2.0**-25 <= after["amin"]
        assert math.frexp(after["amin"])[0] == 0.5  # FP16's smallest, halved
    assert flushed > 0


@needs_fsdp2
def test_shards_that_overflow_on_one_rank_skip_the_step_on_all(mixed):
    run = numwatch.open_run(mixed / "sharded_scaler")
    steps = run.steps().to_pylist()
    assert [step["skipped"] for step in steps] == [False, True, False]
    assert [step["loss_scale_after"] for step in steps] == [256.0, 128.0, 128.0]
    assert steps[1]["nonfinite_parameters"]
    ranks = {(row["step"], row["slot"]): row for row in run.ranks().to_pylist()}
    assert ranks[1, "0:output"]["nonfinite_rank"] == 1
    assert ranks[1, "0:output"]["nonfinite_ranks"] == 1
    assert not [event for event in run.events() if event["kind"] == "differing"]
