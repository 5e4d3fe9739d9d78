"""What of a step is worth a line in `events.jsonl`."""

from numwatch.snapshot import Snapshot
from numwatch.stats.layout import NANS, NEGINFS, POSINFS


def events_of(snapshot: Snapshot) -> list[tuple[str, dict[str, object]]]:
    """Returns the kind and the details of each event of a step.

    Beside them the session writes a `start` with the seconds numwatch took before the first step.
    Kinds: `skip` (the optimizer left the weights alone), `overflow` (the scaler found a non-finite
    gradient), `backoff` and `growth` (the loss scale moved), `nonfinite` (slots that held NaN or
    inf on a recorded step).
    """
    scalars = snapshot.scalars
    before, after = scalars.loss_scale_before, scalars.loss_scale_after
    events: list[tuple[str, dict[str, object]]] = []
    if scalars.found_inf:
        events.append(("overflow", {"loss_scale": before}))
    if scalars.skipped:
        events.append(("skip", {"found_inf": scalars.found_inf}))
    if after != before:
        kind = "growth" if after > before else "backoff"
        events.append((kind, {"loss_scale_before": before, "loss_scale_after": after}))
    slots = _nonfinite(snapshot)
    if slots:
        events.append(("nonfinite", {"slots": slots}))
    return events


def _nonfinite(snapshot: Snapshot) -> list[str]:
    if snapshot.rows is None:
        return []
    counts = snapshot.rows.counts[:, [NANS, POSINFS, NEGINFS]].sum(axis=1)
    return [slot for slot, count in zip(snapshot.rows.slots, counts, strict=True) if count]
