"""A step as named numbers, for TensorBoard and for any other logger.

Tags have the form `numwatch/<figure>` for the step, `numwatch_roles/<role>/<figure>` over all slots
of a role and `numwatch_tensors/<module>/<role>/<figure>` for single slots; those of updates, of the
optimizer's state and of shadow steps are in `report.weight_scalars`. Gradient roles are
spelled `<role>_scaled` where the loss scale is still in the numbers and `<role>_unscaled` where it
was divided out. Magnitudes are given as log2: on a linear axis their decades would be lost.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median

from numwatch.report.figures import SlotFigures, log2_or_none, rows_figures
from numwatch.report.tb_tags import (
    STEP_GROUP,
    role_group,
    tensor_group,
    unscaled_role_group,
)
from numwatch.report.weight_scalars import shadow_scalars, state_scalars, update_scalars
from numwatch.report.window_scalars import window_scalars
from numwatch.snapshot import GRADIENT_ROLES, SlotInfo, Snapshot, StepScalars, role_of

# TensorBoard keeps scalars as FP32.
LARGEST_SCALAR = 3.4028234663852886e38


def scalars(
    snapshot: Snapshot,
    slots: Mapping[str, SlotInfo],
    named: Collection[str] = (),
    parameters: Collection[str] = (),
) -> dict[str, float]:
    """Returns tag → value of one step, finite values only; a figure that is not known is left out.

    Args:
        snapshot: The step. Without rows only the step's own figures are returned, with amax-only
            rows besides only what follows from amax and the non-finite elements.
        slots: What is known of each slot, by its name; decides which format the figures are about.
        named: Slots that get tags of their own. Whoever logs a whole run keeps this set stable
            (see `tb_curation.Curation`), lest each step brings new tags.
        parameters: Parameters that do, likewise.
    """
    rows = [] if snapshot.rows is None else list(rows_figures(snapshot.rows, slots))
    return {
        **step_scalars(snapshot.scalars, rows),
        **role_scalars(rows),
        **tensor_scalars(row for row in rows if row.slot in named),
        **weight_scalars(snapshot, slots, parameters),
    }


def step_scalars(step: StepScalars, rows: Sequence[SlotFigures] = ()) -> dict[str, float]:
    """Returns the step's own figures: loss scale, skips, gradient norm, cost.

    `cost_percent` is numwatch's time in percent of what the step would have taken without it.
    `nonfinite_slots` counts the slots with a NaN or infinite element.
    """
    others = step.step_seconds - step.numwatch_seconds
    counts = [row.nonfinites for row in rows]
    return _finite(
        STEP_GROUP,
        {
            "loss_scale_log2": log2_or_none(step.loss_scale_before),
            "found_inf": float(step.found_inf),
            "skipped": float(step.skipped),
            "grad_norm_unscaled": step.grad_norm,
            "cost_percent": 100 * step.numwatch_seconds / others if others > 0 else None,
            "nonfinite_slots": float(sum(n > 0 for n in counts)) if counts else None,
        },
    )


def role_scalars(rows: Iterable[SlotFigures]) -> dict[str, float]:
    """Returns worst and median over the slots of each role.

    The worst amax is that of the slot with the least headroom, and the two limits beside it are
    those of the same slot's format, so that the three can be drawn as one chart.
    """
    by_role: dict[str, list[SlotFigures]] = {}
    for row in rows:
        by_role.setdefault(role_of(row.slot), []).append(row)
    tags: dict[str, float] = {}
    for role, members in by_role.items():
        slot = members[0].slot
        tags |= _finite(role_group(slot), _role_figures(members))
        if role in GRADIENT_ROLES:
            tags |= _finite(unscaled_role_group(slot), _unscaled_amaxes(members))
    return tags


def tensor_scalars(rows: Iterable[SlotFigures]) -> dict[str, float]:
    """Returns the figures of each row under the name of its slot."""
    tags: dict[str, float] = {}
    for row in rows:
        limits = _shown_limits(row)
        tags |= _finite(
            tensor_group(row.slot),
            {
                "amax_log2": log2_or_none(row.amax),
                "smallest_normal_log2": limits[0],
                "max_log2": limits[1],
                "headroom_bits": row.headroom,
                **_shares(row),
                "nonfinite": row.nonfinites,
            },
        )
    return tags


def weight_scalars(
    snapshot: Snapshot, slots: Mapping[str, SlotInfo], parameters: Collection[str] = ()
) -> dict[str, float]:
    """Returns the figures of a step's loss scale window, updates, state and shadow step."""
    found: dict[str, float | None] = {}
    if snapshot.rows is not None and snapshot.rows.full:
        found |= window_scalars(snapshot.rows, slots, snapshot.scalars.loss_scale_before)
    if snapshot.updates:
        found |= update_scalars(snapshot.updates, slots, parameters)
    if snapshot.states:
        found |= state_scalars(snapshot.states)
    if snapshot.shadows:
        found |= shadow_scalars(snapshot.shadows)
    return _known_tags(found)


def tightest(rows: Sequence[SlotFigures]) -> SlotFigures:
    """Returns the row with the least headroom; where none is known, that with the largest amax."""
    return min(
        rows, key=lambda row: (math.inf if row.headroom is None else row.headroom, -row.amax)
    )


def _role_figures(rows: Sequence[SlotFigures]) -> dict[str, float | None]:
    tight = tightest(rows)
    limits = _shown_limits(tight)
    headrooms = _known(row.headroom for row in rows)
    found: dict[str, float | None] = {
        "amax_log2_worst": log2_or_none(tight.amax),
        "amax_log2_median": _median(_known(log2_or_none(row.amax) for row in rows)),
        "smallest_normal_log2": limits[0],
        "max_log2": limits[1],
        "headroom_bits_worst": min(headrooms, default=None),
        "headroom_bits_median": _median(headrooms),
        "nonfinite": sum(row.nonfinites for row in rows),
    }
    every_share = [_shares(row) for row in rows]
    for name in every_share[0]:
        shares = _known(of_row[name] for of_row in every_share)
        found[f"{name}_worst"] = max(shares, default=None)
        found[f"{name}_median"] = _median(shares)
    return found


def _unscaled_amaxes(rows: Sequence[SlotFigures]) -> dict[str, float | None]:
    tight = tightest(rows)
    return {
        "amax_log2_worst": log2_or_none(tight.amax_unscaled),
        "amax_log2_median": _median(_known(log2_or_none(row.amax_unscaled) for row in rows)),
    }


def _shares(row: SlotFigures) -> dict[str, float | None]:
    # A charted estimate must not be taken for a count.
    flushed = None if row.flushed is None else row.flushed.value
    estimated = row.flushed_from == "estimate"
    return {
        "flushed": None if estimated else flushed,
        "flushed_estimate": flushed if estimated else None,
        "saturated": None if row.saturated is None else row.saturated.value,
    }


def _shown_limits(row: SlotFigures) -> tuple[float | None, float | None]:
    # A margin chart needs value and limits at the very same steps: without amax no limits.
    return (None, None) if row.limits is None or log2_or_none(row.amax) is None else row.limits


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _finite(group: str, found: Mapping[str, float | None]) -> dict[str, float]:
    return _known_tags({f"{group}/{figure}": value for figure, value in found.items()})


def _known_tags(found: Mapping[str, float | None]) -> dict[str, float]:
    # Negated so that NaN fails too: TensorBoard draws it as a gap or breaks the axis on it.
    return {
        tag: float(value)
        for tag, value in found.items()
        if value is not None and abs(value) <= LARGEST_SCALAR
    }
