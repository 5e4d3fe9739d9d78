"""How overhead is found from pairs: weights, turns, medians and their error in closed form."""

import math
import random

import pytest
import torch
from monitors import AMAX_ONLY, CONTROL, DENSE_DEFAULT, EVERY_STEP, VARIANTS
from overhead import multiple
from paired import Length, cost, kind, measure, period, shares, watched_first
from trainee import SUBJECTS, Batch, Cell, Trainee

from numwatch.schedule import Schedule

SCHEDULES = [Schedule(), DENSE_DEFAULT, EVERY_STEP, AMAX_ONLY]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shares_of_kinds_sum_to_one(schedule):
    assert sum(shares(schedule).values()) == pytest.approx(1)


def test_shares_of_the_default_cadence_are_counted_by_hand():
    # Of 500 steps one has blocks, 9 more are full and 40 amax; each has a step before it.
    assert shares(Schedule()) == pytest.approx(
        {
            "full with blocks, then off": 1 / 500,
            "full, then off": 9 / 500,
            "amax, then off": 40 / 500,
            "off, then full with blocks": 1 / 500,
            "off, then full": 9 / 500,
            "off, then amax": 40 / 500,
            "off, then off": 400 / 500,
        }
    )


def test_the_dense_cadence_has_every_kind_of_the_default_one():
    assert shares(DENSE_DEFAULT).keys() == shares(Schedule()).keys()
    assert list(shares(AMAX_ONLY)) == ["amax, then amax"]


@pytest.mark.parametrize("schedule", [DENSE_DEFAULT, EVERY_STEP, AMAX_ONLY])
def test_in_each_kind_of_step_both_go_first_equally_often(schedule):
    turns = {}
    for step in range(2 * period(schedule)):
        turns.setdefault((kind(schedule, step + 2 * period(schedule)), step % period(schedule)), [])
        turns[kind(schedule, step + 2 * period(schedule)), step % period(schedule)].append(
            watched_first(schedule, step)
        )
    assert all(sorted(first) == [False, True] for first in turns.values())


def test_cost_is_the_weighted_mean_of_medians():
    ratios = {name: [2.0] * 5 for name in shares(Schedule())}
    ratios["off, then off"] = [1.0] * 5
    assert cost(ratios, Schedule()) == pytest.approx((0.8 * 1 + 0.2 * 2, 0.0))


def test_error_of_a_median_is_that_of_normal_pairs():
    draw = random.Random(0)
    pairs = [draw.gauss(1.1, 0.05) for _ in range(10_000)]
    middle, error = cost({"full, then full": pairs}, EVERY_STEP)
    assert middle == pytest.approx(1.1, abs=4 * error)
    assert error == pytest.approx(math.sqrt(math.pi / 2) * 0.05 / 100, rel=0.03)


def test_a_multiple_is_told_only_of_what_is_more_than_noise():
    ours, peer = {"cost": 1.1, "error": 0.01}, {"cost": 1.5, "error": 0.01}
    assert multiple(peer, ours) == pytest.approx(5)
    assert multiple(peer, {"cost": 1.1, "error": 0.06}) is None
    assert multiple(peer, {"cost": 0.99, "error": 0.0}) is None
    assert multiple({"failed": "no"}, ours) is None


class Counted:
    """A training of two parameters that notes its steps."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.seen = []

    def batch(self, seed):
        return seed

    def step(self, batch):
        self.seen.append(batch)
        return torch.zeros(())


def test_both_see_the_same_batches_and_at_least_so_many_pairs():
    made = []

    def make():
        made.append(Counted())
        return made[-1]

    found = measure(VARIANTS[CONTROL], make, Length(seconds=0.0, pairs=7, warm_up=3))
    bare, watched = made
    assert bare.seen == watched.seen == list(range(10))
    assert found["pairs"] == {"full, then full": 7}


def test_the_large_gpt_has_124_million_parameters():
    with torch.device("meta"):
        model = SUBJECTS["gpt", "124m"].make()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 124


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", ["gpt", "cnn"])
def test_a_subject_trains(model, precision):
    if (model, precision) == ("cnn", "fp16"):
        pytest.skip("FP16 convolutions take seconds on CPUs without a kernel for them")
    trainee = Trainee(Cell(model, precision, batch=2))
    batch: Batch = trainee.batch(0)
    losses = [float(trainee.step(batch)) for _ in range(6)]
    assert losses[-1] < losses[0]
