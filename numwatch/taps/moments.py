"""What an optimizer's state holds after a step, and whether its dtype can hold it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from numwatch.stats.moments import second_moment_figures
from numwatch.taps.changes import pack_samples
from numwatch.taps.parameters import Updated
from numwatch.taps.states import StateKind, bias_corrections, kind_of, tensors_of

_CHUNK = 2**19
"""Elements looked at at once."""


@dataclass(frozen=True, eq=False)
class States:
    """The same tensor of the state of k parameters of one size.

    Attributes:
        key: Its name in the state.
        kind: What the optimizer does with it.
        sampled: Elements looked at of each.
        dtype: The state's.
        device: Where it is.
        members: The parameters.
        tensors: The state of each, whole: they are the optimizer's own.
        steps: How often each was stepped, as the optimizer counts.
    """

    key: str
    kind: StateKind
    sampled: int
    dtype: torch.dtype
    device: torch.device
    members: list[Updated] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)

    @property
    def slots(self) -> list[str]:
        """`<parameter path>:<key>` of each."""
        return [f"{one.name}:{self.key}" for one in self.members]


@dataclass(frozen=True, eq=False)
class Sampled:
    """Samples [k, n] of some tensors of state, in the state's dtype.

    Attributes:
        slots: Their slots.
        members: The parameters.
        values: The samples.
        figures: Of second moments, FP64 [k, len(stats.moments.MOMENTS)].
    """

    slots: Sequence[str]
    members: Sequence[Updated]
    values: Tensor
    figures: Tensor | None


def states_of(optimizer: torch.optim.Optimizer, stepped: Sequence[Updated]) -> list[States]:
    """Returns the state of all parameters that were stepped."""
    alike: dict[Any, States] = {}
    kinds: dict[Any, StateKind] = {}
    for updated in stepped:
        state = optimizer.state.get(updated.parameter)
        if not state:
            continue
        keys = tuple(state)
        for key, tensor in tensors_of(state, updated.parameter):
            of = (id(updated.group), key, keys)
            if of not in kinds:
                kinds[of] = kind_of(key, state, updated.group)
            kind = kinds[of]
            alike_by = (key, kind, updated.known.sampled, tensor.dtype, tensor.device)
            states = alike.get(alike_by)
            if states is None:
                states = alike[alike_by] = States(*alike_by)
            states.members.append(updated)
            states.tensors.append(tensor)
            states.steps.append(state.get("step"))
    return list(alike.values())


def samples_of(
    states: States, gradients_of: Callable[[Sequence[Updated]], Tensor]
) -> Iterator[Sampled]:
    """Yields the samples of the state, some at once, and what second moments are for gradients.

    Args:
        states: The state.
        gradients_of: See `changes.changes_of`.
    """
    height, slots = max(_CHUNK // max(states.sampled, 1), 1), states.slots
    for start in range(0, len(slots), height):
        end = start + height
        members, kind = states.members[start:end], states.kind
        values = pack_samples(states.tensors[start:end], members)
        figures = None
        if kind.eps is not None:
            figures = second_moment_figures(
                values,
                gradients_of(members),
                torch.full((len(values),), kind.eps, dtype=torch.float64, device=values.device),
                bias_corrections(kind.corrected_by, states.steps[start:end], values.device),
            )
        yield Sampled(slots[start:end], members, values, figures)
