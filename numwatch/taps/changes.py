"""What a step did to the weights, beside what it was meant to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from numwatch.snapshot import format_of_dtype
from numwatch.stats.updates import swallowing
from numwatch.taps.intended import (
    APPLIED,
    ESTIMATE,
    EXACT,
    Before,
    copied_state,
    intended_updates,
    is_element_wise,
)
from numwatch.taps.parameters import Parameters, Updated
from numwatch.taps.placement import local_part
from numwatch.taps.states import master_of

STORAGES = ("fp16", "bf16", "e4m3", "e5m2")
"""Formats that each update is judged for."""
_CHUNK = 2**19
"""Elements compared at once."""


@dataclass(frozen=True, eq=False)
class Change:
    """One parameter's sample over a step; tensors are FP32 [n].

    Attributes:
        name: The parameter.
        numel: Its elements.
        lost_in: The format it is stored in, where what that swallows is lost; None where FP32
            holds the weights.
        source: Where `intended` comes from: `APPLIED`, `EXACT` or `ESTIMATE`.
        directed: False where `intended` is only known to be non-zero: it is the gradient.
        before: The weights before the step.
        intended: The update the optimizer meant.
        applied: The update that arrived.
    """

    name: str
    numel: int
    lost_in: str | None
    source: str
    directed: bool
    before: Tensor
    intended: Tensor
    applied: Tensor


@dataclass(frozen=True, eq=False)
class Judged:
    """What one storage format makes of some parameters' updates.

    Attributes:
        figures: FP64 [k, len(stats.updates.FIGURES)], a row a change.
    """

    changes: Sequence[Change]
    storage: str
    figures: Tensor


def sampled_before(
    optimizer: torch.optim.Optimizer, updated: Updated, parameters: Parameters
) -> Before:
    """Samples a parameter's weights, and where they are narrow its optimizer's state."""
    state = optimizer.state.get(updated.parameter, {})
    before = Before(parameters.sample(_weights(updated, state)).clone(), {})
    if not before.narrow:
        return before
    return replace(before, state=copied_state(state, updated.parameter, parameters.sample))


def changes_of(
    optimizer: torch.optim.Optimizer,
    stepped: Sequence[tuple[Updated, Before]],
    parameters: Parameters,
) -> list[Change]:
    """Returns what a step has just done to each parameter that was sampled before it."""
    narrow = [pair for pair in stepped if pair[1].narrow]
    intended: Sequence[Tensor] | None = None
    gradients = [_gradient(updated, parameters) for updated, _ in narrow]
    if narrow:
        befores = [before for _, before in narrow]
        groups = [updated.group for updated, _ in narrow]
        intended = intended_updates(optimizer, befores, gradients, groups)
    directed = intended is not None
    source = EXACT if directed and is_element_wise(optimizer) else ESTIMATE
    meant = iter(intended if intended is not None else gradients)
    changes = []
    for updated, before in stepped:
        after = parameters.sample(_weights(updated, optimizer.state.get(updated.parameter, {})))
        # FP64 weights too: their update is known before it is rounded to FP32.
        wide = torch.promote_types(before.weight.dtype, torch.float32)
        applied = (after.to(wide) - before.weight.to(wide)).float()
        changes.append(
            Change(
                name=updated.name,
                numel=local_part(updated.parameter).numel(),
                lost_in=format_of_dtype(str(before.weight.dtype)) if before.narrow else None,
                source=source if before.narrow else APPLIED,
                directed=directed or not before.narrow,
                before=before.weight.float(),
                intended=next(meant) if before.narrow else applied,
                applied=applied,
            )
        )
    return changes


def judge(changes: Sequence[Change]) -> Iterator[Judged]:
    """Yields what the storage formats make of the changes, parameters of one size at a time."""
    alike: dict[Any, list[Change]] = {}
    for change in changes:
        key = (change.before.numel(), change.before.device, change.lost_in, change.directed)
        alike.setdefault(key, []).append(change)
    for (size, _, lost_in, directed), members in alike.items():
        height = max(_CHUNK // max(size, 1), 1)
        for start in range(0, len(members), height):
            part = members[start : start + height]
            before = torch.stack([change.before for change in part])
            intended = torch.stack([change.intended for change in part])
            storages = dict.fromkeys((lost_in, *STORAGES) if lost_in else STORAGES)
            for storage in storages if directed else [lost_in]:
                applied = None
                if storage == lost_in:
                    applied = torch.stack([change.applied for change in part])
                figures = swallowing(before, intended, str(storage), applied)
                yield Judged(part, str(storage), figures)


def _weights(updated: Updated, state: Any) -> Tensor:
    master = master_of(state, updated.parameter)
    return updated.parameter if master is None else master


def _gradient(updated: Updated, parameters: Parameters) -> Tensor:
    gradient = updated.parameter.grad
    assert gradient is not None  # noqa: S101  # `stepped` holds those with one
    return parameters.sample(gradient).float()
