"""What of a step is worth a line in `events.jsonl`."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from numwatch.snapshot import GRADIENT_ROLES, Snapshot, StepScalars, role_of
from numwatch.stats.layout import NANS, NEGINFS, POSINFS
from numwatch.tensor_rows import Rows

MAX_NAMES = 20
"""A line names so many slots or parameters at most, and counts the rest."""

Event = tuple[str, dict[str, object]]


def events_of(snapshot: Snapshot) -> list[Event]:
    """Returns the kind and the details of each event of a step.

    Beside them the session writes a `start` with the seconds numwatch took before the first step,
    `memory` with the bytes it holds, `collapse` where the loss scale is on its way to 0, `audit`
    where operations can't be noted, `unseen` with what else could not be seen, `thinned` with the
    rows of each table that were left out where the record could not be written as fast as the run
    went, and `finding` where the diagnosis found something critical; of failed steps there are
    `origin`, where the first bad value came from, and `capsule`.
    Kinds: `skip` (the optimizer left the weights alone; of several, which), `overflow` (the scaler
    found a non-finite gradient; with the parameters and the slots that held one, where known),
    `differing` (scalars that should be the same on all ranks and are not),
    `backoff` and `growth` (the loss scale moved, at each turn of several optimizers), `nonfinite`
    (slots that held NaN or inf on a recorded step; of several ranks, the first). Of names there are
    at most `MAX_NAMES`; `more_slots` and `more_parameters` count the others.
    """
    scalars = snapshot.scalars
    slots = _nonfinite(snapshot.rows)
    events: list[Event] = []
    if scalars.found_inf:
        events.append(("overflow", _culprits(scalars, slots)))
    if scalars.skipped:
        events.append(("skip", _skip(scalars)))
    events += _moves(scalars)
    if slots:
        ranks = _first_ranks(snapshot, slots[:MAX_NAMES])
        events.append(("nonfinite", {**_named("slots", slots), **ranks}))
    if snapshot.differing:
        events.append(("differing", {"scalars": list(snapshot.differing)}))
    return events


def _first_ranks(snapshot: Snapshot, slots: Sequence[str]) -> dict[str, object]:
    """The first rank that held a non-finite element of each slot, where several trained."""
    first = {row.slot: row.nonfinite_rank for row in snapshot.ranks}
    return {"ranks": [first.get(slot) for slot in slots]} if first else {}


def _culprits(scalars: StepScalars, slots: Sequence[str]) -> dict[str, object]:
    gradients = [slot for slot in slots if role_of(slot) in GRADIENT_ROLES]
    return {
        "loss_scale": scalars.loss_scale_before,
        **_named("parameters", scalars.nonfinite_parameters or ()),
        **_named("slots", gradients),
    }


def _skip(scalars: StepScalars) -> dict[str, object]:
    several = len(scalars.loss_scales) > 1 or any(scalars.skipped_optimizers)
    which = {"optimizers": list(scalars.skipped_optimizers)} if several else {}
    return {"found_inf": scalars.found_inf, **which}


def _moves(scalars: StepScalars) -> list[Event]:
    way = (scalars.loss_scale_before, *scalars.loss_scales, scalars.loss_scale_after)
    return [
        (
            "growth" if after > before else "backoff",
            {"loss_scale_before": before, "loss_scale_after": after},
        )
        for before, after in pairwise(way)
        if after != before
    ]


def _named(kind: str, names: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {kind: list(names[:MAX_NAMES])} if names else {}
    more = len(names) - MAX_NAMES
    return {**found, f"more_{kind}": more} if more > 0 else found


def _nonfinite(rows: Rows | None) -> list[str]:
    if rows is None:
        return []
    found: list[str] = []
    for part in rows.parts:  # as they lie: all together would be copied
        counts = part.counts[:, NANS] + part.counts[:, POSINFS] + part.counts[:, NEGINFS]
        found += [part.slots[i] for i in np.flatnonzero(counts).tolist()]
    return found
