"""What of a step is worth a line."""

import pytest
from record_builders import small_rows

from numwatch.record import events_of
from numwatch.record.events import MAX_NAMES
from numwatch.snapshot import Snapshot, StepScalars


def events(rows=None, **scalars):
    return events_of(Snapshot(0, StepScalars(**scalars), rows))


def test_a_calm_step_is_no_event():
    assert events() == []
    assert events(small_rows(0)) == []


def test_an_overflow_names_its_culprits():
    rows = small_rows(0, ["a:output", "a:grad_output", "a.weight:exp_avg"], full=False)
    found = events(
        rows,
        loss_scale_before=8.0,
        loss_scale_after=4.0,
        found_inf=True,
        skipped=True,
        skipped_optimizers=(0,),
        nonfinite_parameters=("a.weight", "a.bias"),
    )
    assert found == [
        (
            "overflow",
            {
                "loss_scale": 8.0,
                "parameters": ["a.weight", "a.bias"],
                "slots": ["a:grad_output"],
            },
        ),
        ("skip", {"found_inf": True}),
        ("backoff", {"loss_scale_before": 8.0, "loss_scale_after": 4.0}),
        ("nonfinite", {"slots": list(rows.slots)}),
    ]


def test_culprits_that_are_not_known_are_not_there():
    assert events(found_inf=True) == [("overflow", {"loss_scale": 1.0})]
    assert events(small_rows(0), found_inf=True) == [("overflow", {"loss_scale": 1.0})]


@pytest.mark.parametrize("count", [MAX_NAMES, MAX_NAMES + 3])
def test_an_event_stays_small(count):
    names = tuple(f"p{i}" for i in range(count))
    slots = [f"m{i}:grad_weight" for i in range(count)]
    overflow, nonfinite = events(
        small_rows(0, slots, full=False), found_inf=True, nonfinite_parameters=names
    )
    more = {} if count == MAX_NAMES else {"more_parameters": 3, "more_slots": 3}
    assert overflow[1] == {
        "loss_scale": 1.0,
        "parameters": list(names[:MAX_NAMES]),
        "slots": slots[:MAX_NAMES],
        **more,
    }
    more.pop("more_parameters", None)
    assert nonfinite[1] == {"slots": slots[:MAX_NAMES], **more}


def test_of_several_optimizers_a_skip_says_which():
    two = {"skipped": True, "loss_scales": (1.0, 1.0)}
    assert events(**two, skipped_optimizers=(0,)) == [
        ("skip", {"found_inf": False, "optimizers": [0]})
    ]
    assert events(skipped=True, skipped_optimizers=(1,)) == [
        ("skip", {"found_inf": False, "optimizers": [1]})
    ]


@pytest.mark.parametrize(
    ("scales", "moves"),
    [
        ((4.0,), []),
        ((4.0, 4.0), []),
        ((4.0, 2.0), [("backoff", 4.0, 2.0)]),
        ((4.0, 4.0, 2.0, 4.0), [("backoff", 4.0, 2.0), ("growth", 2.0, 4.0)]),
        ((4.0, 2.0, 1.0), [("backoff", 4.0, 2.0), ("backoff", 2.0, 1.0)]),
    ],
)
def test_every_move_of_the_loss_scale_within_a_step_is_an_event(scales, moves):
    found = events(
        loss_scale_before=scales[0], loss_scales=scales[:-1], loss_scale_after=scales[-1]
    )
    assert [(k, e["loss_scale_before"], e["loss_scale_after"]) for k, e in found] == moves
