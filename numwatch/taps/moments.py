"""What an optimizer's state holds after a step, and whether its dtype can hold it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numwatch.stats.moments import second_moment_figures
from numwatch.taps.parameters import Parameters, Updated
from numwatch.taps.states import StateKind, bias_correction, kind_of, tensors_of

_CHUNK = 2**16
"""Elements looked at at once, in FP64."""


@dataclass(frozen=True, eq=False)
class StateSample:
    """The sample [n] of one tensor of an optimizer's state.

    Attributes:
        slot: `<parameter path>:<key>`.
        dtype: The state's.
        kind: What the optimizer does with it.
        state: The sample, in the state's dtype.
        gradient: The same elements of the gradient, for a second moment.
        correction: What a second moment is divided by before its root is taken.
    """

    slot: str
    kind: StateKind
    state: Tensor
    gradient: Tensor | None
    correction: Tensor | float


@dataclass(frozen=True, eq=False)
class JudgedMoments:
    """Figures of second moments, FP64 [k, len(stats.moments.MOMENTS)]."""

    slots: Sequence[str]
    figures: Tensor


def states_of(
    optimizer: torch.optim.Optimizer, stepped: Sequence[Updated], parameters: Parameters
) -> list[StateSample]:
    """Returns the samples of an optimizer's state, of all its parameters that were stepped."""
    samples = []
    for updated in stepped:
        parameter, gradient = updated.parameter, updated.parameter.grad
        if gradient is None:
            continue
        state = optimizer.state.get(parameter, {})
        sampled = None
        for key, tensor in tensors_of(state, parameter):
            kind = kind_of(key, state, updated.group)
            if kind.eps is not None and sampled is None:
                sampled = parameters.sample(gradient)
            samples.append(
                StateSample(
                    slot=f"{updated.name}:{key}",
                    kind=kind,
                    state=parameters.sample(tensor),
                    gradient=sampled if kind.eps is not None else None,
                    correction=bias_correction(kind.corrected_by, state),
                )
            )
    return samples


def judge_moments(samples: Sequence[StateSample]) -> Iterator[JudgedMoments]:
    """Yields the figures of the second moments among the samples, those of one size together."""
    alike: dict[tuple[int, torch.device], list[StateSample]] = {}
    for one in samples:
        if one.gradient is not None:
            alike.setdefault((one.state.numel(), one.state.device), []).append(one)
    for (size, device), members in alike.items():
        height = max(_CHUNK // max(size, 1), 1)
        for start in range(0, len(members), height):
            part = members[start : start + height]
            figures = second_moment_figures(
                torch.stack([one.state.float() for one in part]),
                torch.stack([one.gradient.float() for one in part if one.gradient is not None]),
                torch.tensor([one.kind.eps for one in part], dtype=torch.float64).to(
                    device, non_blocking=True
                ),
                _stacked([one.correction for one in part], device),
            )
            yield JudgedMoments([one.slot for one in part], figures)


def _stacked(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    tensors = [torch.as_tensor(value, dtype=torch.float64).reshape(()) for value in values]
    home = torch.device("cpu") if all(t.device.type == "cpu" for t in tensors) else device
    return torch.stack([t.to(home, non_blocking=True) for t in tensors]).to(
        device, non_blocking=True
    )
