"""What a step did to the weights, beside what it was meant to do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.snapshot import format_of_dtype
from numwatch.stats.packing import pack
from numwatch.stats.updates import swallowing
from numwatch.taps.intended import (
    APPLIED,
    ESTIMATE,
    EXACT,
    Before,
    copied_state,
    intended_updates,
    is_element_wise,
    is_narrow,
)
from numwatch.taps.parameters import Parameters, Updated
from numwatch.taps.placement import local_part
from numwatch.taps.states import master_of

STORAGES = ("fp16", "bf16", "e4m3", "e5m2")
"""Formats that each update is judged for."""
_CHUNK = 2**19
"""Elements compared at once."""
_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True, eq=False)
class Weights:
    """Samples of parameters of one size and dtype, as they were before a step.

    Attributes:
        members: The parameters, k of them.
        values: Their weights [k, n], in the weights' dtype; rows in the same order.
        states: Of narrow weights what the optimizer kept of each; see `intended.Before`.
    """

    members: Sequence[Updated]
    values: Tensor
    states: Sequence[Any] = ()

    @property
    def narrow(self) -> bool:
        """Whether the weights are stored in a format that swallows updates."""
        return is_narrow(self.values.dtype)

    def where(self, wanted: Callable[[Updated], bool]) -> "Weights":
        """Returns those of them that are wanted."""
        kept = [i for i, one in enumerate(self.members) if wanted(one)]
        if len(kept) == len(self.members):
            return self
        rows = [self.values[i] for i in kept]
        return Weights(
            [self.members[i] for i in kept],
            torch.stack(rows) if rows else self.values[:0],
            [self.states[i] for i in kept] if self.states else (),
        )

    def tensors(self) -> list[Tensor]:
        """Returns all that is held in memory."""
        kept = [value for state in self.states for value in state.values()]
        return [self.values, *(value for value in kept if isinstance(value, Tensor))]


@dataclass(frozen=True, eq=False)
class Change:
    """What a step did to the samples of k parameters of one size; tensors are FP32 [k, n].

    Attributes:
        members: The parameters.
        lost_in: The format they are stored in, where what that swallows is lost; None where FP32
            holds the weights.
        source: Where `intended` comes from: `APPLIED`, `EXACT` or `ESTIMATE`.
        directed: False where `intended` is only known to be non-zero: it is the gradient.
        before: The weights before the step.
        intended: The update the optimizer meant.
        applied: The update that arrived.
    """

    members: Sequence[Updated]
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
        names: Names of the parameters, k of them.
        numels: Their elements.
        sampled: How many were looked at of each.
        lost_in: See `Change`.
        source: Likewise.
        directed: Likewise.
        storage: The format.
        figures: FP64 [k, len(stats.updates.FIGURES)].
    """

    names: Sequence[str]
    numels: Sequence[int]
    sampled: int
    lost_in: str | None
    source: str
    directed: bool
    storage: str
    figures: Tensor


def weights_before(optimizer: torch.optim.Optimizer, parameters: Parameters) -> list[Weights]:
    """Samples all weights, and where they are narrow the optimizer's state."""
    alike: dict[Any, tuple[list[Updated], list[Tensor]]] = {}
    for updated in parameters.measured(optimizer):
        weights = _weights(updated, optimizer)
        key = (updated.known.sampled, weights.dtype, weights.device)
        members, tensors = alike.setdefault(key, ([], []))
        members.append(updated)
        tensors.append(weights)
    found = []
    for members, tensors in alike.values():
        values = pack_samples(tensors, members)
        states: Sequence[Any] = ()
        if is_narrow(values.dtype):
            states = [
                copied_state(optimizer.state.get(p, {}), p, parameters.sample)
                for p in (one.parameter for one in members)
            ]
        found.append(Weights(members, values, states))
    return found


def changes_of(
    optimizer: torch.optim.Optimizer,
    stepped: Sequence[Weights],
    gradients_of: Callable[[Sequence[Updated]], Tensor],
) -> Iterator[Change]:
    """Yields what a step has just done to parameters that were sampled before it, some at once.

    Args:
        optimizer: Whose step it was.
        stepped: The samples before it.
        gradients_of: Returns samples [k, n] of the gradients that k of them were stepped by.
    """
    narrow = [weights for weights in stepped if weights.narrow]
    intended: Sequence[Tensor] | None = None
    gradients: list[Tensor] = []
    if narrow:
        befores = [
            Before(row, state)
            for weights in narrow
            for row, state in zip(weights.values.unbind(), weights.states, strict=True)
        ]
        members = [one for weights in narrow for one in weights.members]
        gradients = [
            row.float() for weights in narrow for row in gradients_of(weights.members).unbind()
        ]
        intended = intended_updates(optimizer, befores, gradients, [m.group for m in members])
    directed = intended is not None
    source = EXACT if directed and is_element_wise(optimizer) else ESTIMATE
    meant = iter(intended if intended is not None else gradients)
    for weights in stepped:
        height = max(_CHUNK // max(weights.values.shape[1], 1), 1)
        for start in range(0, len(weights.members), height):
            some, before = weights.members[start : start + height], weights.values
            before = before[start : start + height]
            applied = _applied(optimizer, some, before)
            own = torch.stack([next(meant) for _ in some]) if weights.narrow else applied
            yield Change(
                members=some,
                lost_in=format_of_dtype(str(before.dtype)) if weights.narrow else None,
                source=source if weights.narrow else APPLIED,
                directed=directed or not weights.narrow,
                before=before.float(),
                intended=own,
                applied=applied,
            )


def judge(change: Change) -> Iterator[Judged]:
    """Yields what each storage format makes of a change."""
    lost_in = change.lost_in
    names = [one.name for one in change.members]
    numels = [one.known.numel for one in change.members]
    storages = dict.fromkeys((lost_in, *STORAGES) if lost_in else STORAGES)
    for storage in storages if change.directed else [lost_in]:
        applied = change.applied if storage == lost_in else None
        yield Judged(
            names=names,
            numels=numels,
            sampled=change.before.shape[1],
            lost_in=lost_in,
            source=change.source,
            directed=change.directed,
            storage=str(storage),
            figures=swallowing(change.before, change.intended, str(storage), applied),
        )


def pack_samples(tensors: Sequence[Tensor], members: Sequence[Updated]) -> Tensor:
    """Returns the samples [k, n] of tensors that have the parameters' shapes, copied."""
    strides = [one.known.stride for one in members]
    # Asking a plain tensor for its part takes longer than to copy a small one.
    own = [one if type(one) in _PLAIN else local_part(one) for one in tensors]
    return pack(own, strides, members[0].known.sampled)


def _applied(
    optimizer: torch.optim.Optimizer, members: Sequence[Updated], before: Tensor
) -> Tensor:
    """Returns the updates [k, n] that arrived, FP32."""
    after = pack_samples([_weights(one, optimizer) for one in members], members)
    # FP64 weights too: their update is known before it is rounded to FP32.
    wide = torch.promote_types(before.dtype, torch.float32)
    return after.to(wide).sub_(before.to(wide)).float()


def _weights(updated: Updated, optimizer: torch.optim.Optimizer) -> Tensor:
    state = optimizer.state.get(updated.parameter)
    master = master_of(state, updated.parameter) if state else None
    return updated.parameter if master is None else master
