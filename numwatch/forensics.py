"""The origin search: a failed step once more, on a copy, with an eye on every operation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from numwatch.errors import NumwatchError
from numwatch.shadow import ShadowStep, reason
from numwatch.taps.blame import DATA, FORWARD, LOSS, Blame, Suspect
from numwatch.taps.contents import description, is_nonfinite
from numwatch.taps.fp32 import copy_exactly, empty, forgotten
from numwatch.taps.hooks import tensors_in
from numwatch.taps.placement import of_many_ranks
from numwatch.taps.places import Places
from numwatch.taps.starts import Start

NONE, UNKNOWN = "none", "unknown"
"""Phases beside those of a step: nothing non-finite was found; it could not be looked for."""


@dataclass(frozen=True)
class Origin:
    """Where the first non-finite value of a step came from.

    Attributes:
        phase: "data", "parameter", "forward", "loss" or "backward"; "none" where the step came out
            finite this time, "unknown" where it could not be run once more.
        module: Path of the innermost module at work, "" for the root or none.
        operation: "aten.exp.default"; "" for data and parameters.
        source: `model.py:42 in forward: y = x.exp()`; of an operation of backward the line whose
            gradient it computes.
        value: "nan" or "inf", "" where none was found.
        inputs: What the operation took: `shape`, `dtype`, `low` and `high` of the finite elements,
            `nonfinite`.
        tensor: Name of the parameter or of the batch's tensor that was not finite.
        note: Why not, where the search was impossible or partial.
        loss: The loss that was found, unscaled, as backward took it; None without any.
    """

    phase: str
    module: str = ""
    operation: str = ""
    source: str = ""
    value: str = ""
    inputs: tuple[dict[str, Any], ...] = ()
    tensor: str = ""
    note: str = ""
    loss: float | None = field(default=None, compare=False)

    def as_event(self) -> dict[str, Any]:
        """Returns the fields of an `origin` event."""
        event = asdict(self)
        del event["loss"]
        return {**event, "inputs": list(self.inputs)}


@dataclass(frozen=True)
class FailedStep:
    """A step to look into.

    Attributes:
        step: What to run, and what the copy of the model holds instead of certain objects.
        start: How things stood when it began.
        scale: The loss scale that was in force.
        batch: The batch, to name its tensors; None where it is not known.
    """

    step: ShadowStep
    start: Start
    scale: float = 1.0
    batch: Any = None


def find_origin(
    model: nn.Module,
    failed: FailedStep,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Origin:
    """Runs a failed step once more and names the first operation that made a non-finite value.

    The run goes on as if nothing had happened: see `ShadowPass` for what that comprises. Weights
    must still be those that the step began with. It takes a few times as long as the step did, and
    the memory of a copy of the model and of the step's activations.

    Args:
        model: The model.
        failed: The step.
        around: Surroundings of the forward, such as an autocast.

    Returns:
        The origin. Where the step can't be run once more its phase is "unknown" and its note says
        why.
    """
    why = None
    try:
        return _find(model, failed, around)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the user's own step: anything
        why = reason(error)
    return Origin(UNKNOWN, note=f"the step could not be run once more: {why}")


def _find(
    model: nn.Module, failed: FailedStep, around: Callable[[], AbstractContextManager[Any]]
) -> Origin:
    if of_many_ranks():
        raise NumwatchError("the run is distributed, and a step of one rank alone could hang")
    with forgotten(model), torch.no_grad():
        copied = copy_exactly(model, failed.step.stand_ins)
        try:
            for tensor in copied.parameters():
                tensor.grad = None
            failed.start.restore(copied)
            with torch.enable_grad():
                return _watched_step(copied, failed, around)
        finally:
            empty(copied)


def _watched_step(
    copied: nn.Module, failed: FailedStep, around: Callable[[], AbstractContextManager[Any]]
) -> Origin:
    places = Places(copied)
    blame = Blame(copied, places)
    _forget_gradients(copied, blame)
    with blame:
        with around():
            loss = failed.step.loss_of(copied)
        blame.arrive(loss)
        with _disable_current_modes():
            found = None if loss is None else float(loss.detach())
            scale = torch.full((), failed.scale, device=None if loss is None else loss.device)
        if loss is not None and loss.requires_grad and not blame.arrived:
            # Without a scale nothing is multiplied, as in the run.
            (loss if failed.scale == 1.0 else loss * scale).backward()
    if not blame.arrived:
        return Origin(NONE, note="the step came out finite when it was run once more", loss=found)
    return replace(_origin(blame, places, failed.batch), loss=found)


def _origin(blame: Blame, places: Places, batch: Any) -> Origin:
    suspect = blame.culprit()
    if suspect is None:
        return Origin(UNKNOWN, note="the step is not finite, but each operation seen was")
    phase = suspect.phase
    if phase == LOSS and places.calls > suspect.calls:
        phase = FORWARD  # a module took it from there
    tensor, inputs = suspect.tensor, suspect.inputs
    if phase == DATA:
        tensor, inputs = _in_batch(batch, suspect)
    partial = not blame.reached
    return Origin(
        phase=phase,
        module=suspect.module,
        operation=suspect.operation,
        source=suspect.source,
        value=suspect.value,
        inputs=inputs,
        tensor=tensor,
        note="the first found; how it reached the loss was not seen" if partial else "",
    )


def _in_batch(batch: Any, suspect: Suspect) -> tuple[str, tuple[dict[str, Any], ...]]:
    """Returns the name of the batch's tensor that was not finite, and its description."""
    found = [(name, t) for name, t in named_tensors(batch) if is_nonfinite(t)]
    alike = [(n, t) for n, t in found if list(t.shape) == suspect.inputs[0]["shape"]]
    for name, tensor in (*alike, *found):
        return name, (description(tensor),)
    return "", suspect.inputs


def named_tensors(batch: Any, name: str = "batch") -> list[tuple[str, Tensor]]:
    """Returns the tensors of a batch by name: `batch[0]`, `batch['x']`."""
    if isinstance(batch, Tensor):
        return [(name, batch)]
    if isinstance(batch, (tuple, list)):
        parts: list[tuple[Any, Any]] = list(enumerate(batch))
    elif hasattr(batch, "items"):
        parts = list(batch.items())
    else:
        return [(name, tensor) for tensor in tensors_in(vars(batch))] if _has_dict(batch) else []
    return [pair for key, value in parts for pair in named_tensors(value, f"{name}[{key!r}]")]


def _has_dict(value: Any) -> bool:
    return hasattr(value, "__dict__")


def _forget_gradients(copied: nn.Module, blame: Blame) -> None:
    """Looks at each gradient as it comes, and frees it."""

    def see(parameter: Tensor) -> None:
        blame.arrive(parameter.grad)
        parameter.grad = None

    for parameter in copied.parameters():
        if parameter.requires_grad and not is_lazy(parameter):
            parameter.register_post_accumulate_grad_hook(see)
