"""Updates, optimizer state and shadow steps as named numbers; see `report.scalars` for the tags."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import median

from numwatch.report.figures import log2_or_none
from numwatch.report.parameter_slots import low_format, storage_order
from numwatch.report.tb_tags import (
    STATE_GROUP,
    parameter_group,
    shadow_group,
    storage_group,
)
from numwatch.snapshot import SlotInfo, path_of
from numwatch.step_entries import OptimizerState, Shadow, Update

_SHARES: Mapping[str, Callable[[Update], float | None]] = {
    "swallowed": lambda update: update.swallowed,
    "stochastic_kept": lambda update: update.stochastic_kept,
    "deferred": lambda update: update.deferred,
    "edq_normalised": lambda update: update.edq_normalised,
}

Found = dict[str, float | None]


def update_scalars(
    updates: Sequence[Update], slots: Mapping[str, SlotInfo], named: Collection[str] = ()
) -> Found:
    """Returns what each storage format does to a step's updates, and those of named parameters.

    Shares count each parameter by its non-zero updates. Where some parameters are stored in a
    format, its figures are theirs. `ratio_log2_worst` is the largest.
    """
    tags: Found = {}
    by_storage: dict[str, list[Update]] = defaultdict(list)
    for update in updates:
        by_storage[update.storage].append(update)
    for storage, members in by_storage.items():
        lost = [update for update in members if update.lost]
        for name, share in _SHARES.items():
            tags[f"{storage_group(storage)}/{name}"] = _weighted(lost or members, share)
    ratios = {update.slot: log2_or_none(update.ratio) for update in updates}
    known = [ratio for ratio in ratios.values() if ratio is not None]
    if known:
        tags[f"{storage_group('ratio_log2')}_median"] = median(known)
        tags[f"{storage_group('ratio_log2')}_worst"] = max(known)
    for update in of_own_storage(updates, slots):
        parameter = path_of(update.slot)
        if parameter in named:
            tags[f"{parameter_group(parameter)}/swallowed"] = update.swallowed
            tags[f"{parameter_group(parameter)}/ratio_log2"] = ratios[update.slot]
    return tags


def state_scalars(states: Iterable[OptimizerState]) -> Found:
    """Returns the worst of a step's optimizer state, over all parameters."""
    states = list(states)
    return {
        f"{STATE_GROUP}/rms_t_worst": _largest(state.rms for state in states),
        f"{STATE_GROUP}/below_eps_worst": _largest(state.below_eps for state in states),
        f"{STATE_GROUP}/vanished_worst": _largest(state.vanished for state in states),
    }


def shadow_scalars(shadows: Iterable[Shadow]) -> Found:
    """Returns what a shadow step measured of each role: the share flushed, the median error."""
    by_role: dict[str, list[Shadow]] = defaultdict(list)
    for shadow in shadows:
        by_role[shadow_group(shadow.slot)].append(shadow)
    tags: Found = {}
    for group, members in by_role.items():
        nonzero = sum(shadow.sampled - shadow.zeros for shadow in members)
        flushed = sum(shadow.flushed for shadow in members)
        errors = [s.relative_error for s in members if s.relative_error is not None]
        tags[f"{group}/flushed"] = flushed / nonzero if nonzero else None
        tags[f"{group}/relative_error_median"] = median(errors) if errors else None
    return tags


def of_own_storage(updates: Sequence[Update], slots: Mapping[str, SlotInfo]) -> list[Update]:
    """Returns each parameter's update in the format it is stored in, or would be first of all."""
    own = low_format(slots)
    first: dict[str, Update] = {}
    for update in sorted(updates, key=lambda u: (not u.lost, storage_order(u.storage, own))):
        first.setdefault(update.slot, update)
    return list(first.values())


def _weighted(updates: Iterable[Update], share: Callable[[Update], float | None]) -> float | None:
    known = [(value, update.nonzero) for update in updates if _finite(value := share(update))]
    weights = sum(weight for _, weight in known)
    return sum((value or 0.0) * weight for value, weight in known) / weights if weights else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None and _finite(value)), default=None)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
