"""DESIGN's rules under every Trainer: one test over the table in `trainer_cases`."""

import random
import warnings

import numpy as np
import pytest
import torch
import trainer_rules as rules
from trainer_cases import CASES, Setting
from trainer_witness import outcome_of

import numwatch


def cells():
    for case in CASES:
        for precision in case.precisions:
            marks = () if precision in case.always else (pytest.mark.slow,)
            yield pytest.param(case, precision, id=f"{case.name}, {precision}", marks=marks)


def run_in(case, setting):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # what users' own data sets draw from
    with warnings.catch_warnings():
        for text in case.ignore:
            warnings.filterwarnings("ignore", message=text)
        return case.run(setting)


@pytest.mark.parametrize(("case", "precision"), list(cells()))
def test_the_rules_hold(case, precision, tmp_path):
    if case.needs:
        pytest.importorskip(case.needs)
    bare = outcome_of(run_in(case, Setting(precision, tmp_path / "bare", watched=False)))
    trained = run_in(case, Setting(precision, tmp_path / "watched", watched=True))
    watched = outcome_of(trained)
    rules.training_is_bitwise_the_same(bare, watched)
    rules.no_trace_is_left(bare, watched)
    rules.nothing_is_kept_alive(bare, watched)
    assert trained.records
    for directory in trained.records:
        run = numwatch.open_run(directory)
        rules.every_slot_is_seen(case, precision, run)
        rules.every_update_is_seen(run, trained.model)
        rules.scalars_are_those_of_the_run(case, precision, run, watched)
        rules.nothing_is_said_without_cause(run)
