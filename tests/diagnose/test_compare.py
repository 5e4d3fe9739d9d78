"""Two runs side by side: nothing of noise, everything of a planted difference, the first first."""

import json

import numpy as np
import pytest
import torch
from family_builders import cast_of, slot, tensor_rows
from hypothesis import given
from hypothesis import strategies as st

import numwatch
from numwatch.diagnose.compare import compare, distance, parting
from numwatch.record import Recorder
from numwatch.snapshot import Snapshot, StepScalars

INFOS = (slot("a", "output", 1), slot("b", "output", 2), slot("a", "grad_output", 3))


def tensor(step, place, seed=0, factor=1.0):
    generator = torch.Generator().manual_seed(1000 * seed + 10 * step + place)
    return factor * 2.0**place * torch.randn(512, generator=generator)


def written(
    directory, tensors, infos=INFOS, steps=range(20), losses=None, casts=None, precision="x"
):
    """A record of `tensors(step, place)` at each step, with a loss."""
    with Recorder.open(directory, precision=precision, device="cpu", arguments={}) as recorder:
        recorder.describe(list(infos))
        for step in steps:
            entries = [
                (info, tensors(step, place), casts(step, place) if casts else None)
                for place, info in enumerate(infos)
            ]
            loss = losses[step] if losses is not None else 2.0 + 0.1 * np.sin(step)
            recorder.write(Snapshot(step, StepScalars(loss=loss), tensor_rows(entries)))
    return numwatch.open_run(directory)


def test_two_identical_runs_have_no_difference(tmp_path):
    run = written(tmp_path / "a", tensor)
    same = written(tmp_path / "b", tensor)
    comparison = compare(run, same)
    assert comparison.first is None
    assert comparison.differences == comparison.others == ()
    assert (comparison.steps, comparison.slots) == (20, 3)
    assert compare(run, run).differences == ()


@pytest.mark.parametrize("seed", range(1, 4))
def test_other_seeds_are_no_difference(tmp_path, seed):
    run = written(tmp_path / "a", tensor)
    other = written(tmp_path / "b", lambda step, place: tensor(step, place, seed))
    assert compare(run, other).differences == ()


def test_the_first_to_part_leads_and_the_rest_goes_by_size(tmp_path):
    def planted(step, place):
        factor = 1.0
        if place == 1 and step >= 8:
            factor = 4.0
        if place == 2 and step >= 12:
            factor = 64.0
        return tensor(step, place, factor=factor)

    run, other = written(tmp_path / "a", tensor), written(tmp_path / "b", planted)
    comparison = compare(run, other)
    first = comparison.first
    assert (first.slot, first.step, first.order) == ("b:output", 8, 2.0)
    assert {first.figure, comparison.others[-1].figure} == {"amax", "rms"}
    assert first.apart == pytest.approx(2.0, abs=1e-6)
    assert first.b == pytest.approx(4 * first.a, rel=1e-6)
    found = [(each.slot, each.figure, each.step) for each in comparison.others]
    assert ("a:grad_output", "rms", 12) in found
    assert ("a:grad_output", "amax", 12) in found
    scores = [each.score for each in comparison.others]
    assert scores == sorted(scores, reverse=True)
    assert len(comparison.differences) == 4


def test_in_one_step_the_data_flow_decides(tmp_path):
    other = written(tmp_path / "b", lambda s, p: tensor(s, p, factor=8.0 if s >= 5 else 1.0))
    first = compare(written(tmp_path / "a", tensor), other).first
    assert (first.slot, first.step) == ("a:output", 5)


def test_what_one_step_or_two_differ_in_is_nothing(tmp_path):
    other = written(tmp_path / "b", lambda s, p: tensor(s, p, factor=8.0 if 5 <= s < 7 else 1.0))
    assert compare(written(tmp_path / "a", tensor), other).differences == ()


def test_steps_are_aligned_by_their_number(tmp_path):
    run = written(tmp_path / "a", tensor, steps=range(20))
    other = written(tmp_path / "b", tensor, steps=range(4, 30, 2))
    comparison = compare(run, other)
    assert comparison.differences == ()
    assert comparison.steps == 8
    shifted = written(
        tmp_path / "c", lambda s, p: tensor(s, p, factor=1 + 7 * (s > 9)), steps=range(4, 30, 2)
    )
    assert compare(run, shifted).first.step == 10


def test_slots_of_one_run_alone_are_listed(tmp_path):
    more = (*INFOS, slot("c", "input", 4), slot("c", "output", 5))
    comparison = compare(written(tmp_path / "a", tensor, more), written(tmp_path / "b", tensor))
    assert comparison.only_a == ("c:input", "c:output")
    assert comparison.only_b == ()
    assert comparison.slots == 3


def test_a_tensor_that_turned_nan_is_infinitely_far(tmp_path):
    def broken(step, place):
        found = tensor(step, place)
        if place == 2 and step >= 10:
            found[0] = torch.nan
        return found

    first = compare(written(tmp_path / "a", tensor), written(tmp_path / "b", broken)).first
    assert (first.slot, first.figure, first.step) == ("a:grad_output", "amax", 10)
    assert first.apart == first.largest == first.score == np.inf


def test_intended_minus_infinity_is_none(tmp_path):
    def masked(step, place):
        found = tensor(step, place)
        found[:100] = -torch.inf
        return found

    run = written(tmp_path / "a", masked)
    assert compare(run, run).differences == ()


def test_a_cast_that_flushes_parts_from_one_that_does_not(tmp_path):
    run = written(tmp_path / "a", tensor)
    other = written(
        tmp_path / "b",
        tensor,
        casts=lambda step, place: cast_of(flushed=256 if step >= 6 else 0) if place else None,
    )
    first = compare(run, other).first
    assert (first.slot, first.figure, first.step) == ("b:output", "flushed", 6)
    assert (first.a, first.b) == (0.0, 0.5)


@pytest.mark.parametrize("offset", [0.0, -10.0])
def test_losses_part_whatever_their_sign(tmp_path, offset):
    noise = 0.01 * np.random.default_rng(0).normal(size=60)
    losses = offset + 2.0 + noise
    apart = losses + np.where(np.arange(60) >= 30, 1.0, 0.0)
    infos, steps = INFOS[:1], range(60)
    run = written(tmp_path / "a", tensor, infos, steps, losses.tolist())
    other = written(tmp_path / "b", tensor, infos, steps, apart.tolist())
    first = compare(run, other).first
    assert (first.slot, first.figure, first.step) == ("loss", "loss", 30)
    assert (first.a, first.b) == (pytest.approx(losses[30]), pytest.approx(apart[30]))


def test_what_is_found_is_plain_data(tmp_path):
    other = written(tmp_path / "b", lambda s, p: tensor(s, p, factor=8.0))
    comparison = compare(written(tmp_path / "a", tensor), other)
    data = json.loads(json.dumps(comparison.as_dict()))
    assert data["first"]["slot"] == "a:output"
    assert data["others"][0]["figure"] in {"amax", "rms"}


def test_runs_without_rows_can_be_compared(tmp_path):
    run = written(tmp_path / "a", tensor)
    empty = written(tmp_path / "b", tensor, (), range(0))
    comparison = compare(run, empty)
    assert comparison.first is None
    assert comparison.only_a == tuple(info.slot for info in INFOS)


@given(st.integers(0, 2**32 - 1), st.integers(16, 300), st.floats(0.0, 20.0))
def test_noise_alone_never_parts(seed, n, sigma):
    generator = np.random.default_rng(seed)
    a, b = sigma * generator.normal(size=(2, n))
    assert parting(a, b, 0.1) is None


@given(st.integers(0, 2**32 - 1), st.integers(0, 47), st.floats(0.01, 1.0))
def test_a_planted_step_above_the_noise_parts_where_it_was_planted(seed, at, sigma):
    generator = np.random.default_rng(seed)
    a, b = sigma * generator.normal(size=(2, 50))
    b[at:] += 20 * sigma
    found = parting(a, b, 0.1)
    assert found is not None
    assert found[0] == at


@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 2), min_size=1))
def test_distances_are_symmetric_and_zero_to_oneself(pairs):
    a, b = np.array(pairs).T
    np.testing.assert_array_equal(distance(a, b), distance(b, a))
    assert (distance(a, a) == 0).all()
