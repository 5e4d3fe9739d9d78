"""`numwatch reproduce`: the failed step of a capsule run again, and whether it fails alike."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.errors import NumwatchError
from numwatch.forensics import NONE, FailedStep, Origin, find_origin
from numwatch.record.capsule import Capsule, hex_of, load_capsule
from numwatch.restore import restore
from numwatch.script import made_by
from numwatch.shadow import ShadowStep, reason
from numwatch.taps.fp32 import copy_exactly
from numwatch.taps.generators import RandomStates
from numwatch.taps.norms import gradient_norm
from numwatch.taps.starts import Start

SAME, DIFFERS, UNKNOWN = "bit for bit", "differs", "not known"
"""What a comparison can come to; "not known" where the run or this step did not have it."""


@dataclass(frozen=True)
class Compared:
    """One number or text of the failed step, in the run and now.

    Attributes:
        name: "loss", "gradient norm", "first bad operation" or "exception".
        then: As the run had it, None where it is not known.
        now: As the step has it now.
    """

    name: str
    then: str | None
    now: str | None

    @property
    def outcome(self) -> str:
        """`SAME`, `DIFFERS` or `UNKNOWN`."""
        if self.then is None:
            return UNKNOWN
        return SAME if self.then == self.now else DIFFERS


@dataclass(frozen=True)
class Reproduction:
    """A failed step run again.

    Attributes:
        capsule: What it was run from.
        compared: What was compared.
        origin: Where the first non-finite value came from this time.
    """

    capsule: Capsule
    compared: tuple[Compared, ...]
    origin: Origin | None

    @property
    def same(self) -> bool:
        """Whether all that the run knew came out bit for bit, and it knew something."""
        outcomes = [one.outcome for one in self.compared]
        return DIFFERS not in outcomes and SAME in outcomes


def reproduce(run: str | os.PathLike[str], script: str) -> Reproduction:
    """Runs the step of a run's capsule again.

    Weights, buffers, optimizer state, scaler and random numbers are the capsule's; what else the
    model keeps in attributes is as the function makes it.

    Args:
        run: The run's directory.
        script: `my_model.py:make_model`: a file, and a function in it that returns the
            LightningModule, or an `nn.Module` with `training_step(batch, batch_idx)`.

    Raises:
        NumwatchError: There is no capsule, it lacks what the step needs, or the script does not
            make the model.
    """
    capsule = load_capsule(run)
    for part in ("module", "batch", "random"):
        if capsule.state.get(part) is None:
            notes = "; ".join(capsule.notes) or "the run did not have it"
            raise NumwatchError(f"the capsule in {capsule.path} lacks the {part}: {notes}")
    model = made_by(script)
    if not hasattr(model, "training_step"):
        raise NumwatchError(
            f"{script} returns a LightningModule or an nn.Module with "
            f"training_step(batch, batch_idx); got a {type(model).__name__} without"
        )
    device = torch.device("cuda" if _wants_cuda(capsule) else "cpu")
    restore(model, capsule, device)
    scale = capsule.number("loss_scale") or 1.0
    # The search first: it changes nothing.
    origin = find_origin(model, _failed_step(capsule, device, scale), partial(_around, capsule))
    return Reproduction(capsule, tuple(_compare(model, capsule, device, scale, origin)), origin)


def lines(found: Reproduction) -> Iterator[str]:
    """Yields what a person reads of a reproduction."""
    facts = found.capsule.facts
    yield (
        f"step {facts['step']} · epoch {facts['epoch']} · batch {facts['batch_index']} · "
        f"{facts['precision']} · kept because of its {_REASONS.get(facts['reason'], 'failure')}"
    )
    for one in found.compared:
        now = "" if one.outcome == SAME else f", now {one.now}"
        yield f"{one.name}: {one.outcome} ({one.then}{now})"
    if found.origin is not None and found.origin.note:
        yield f"note: {found.origin.note}"
    for note in found.capsule.notes:
        yield f"note: {note}"


_REASONS: Mapping[str, str] = {
    "loss": "non-finite loss",
    "gradient": "non-finite gradients",
    "collapse": "loss scale's collapse",
    "critical": "critical finding",
    "exception": "exception",
}


def _compare(
    model: nn.Module, capsule: Capsule, device: torch.device, scale: float, origin: Origin
) -> Iterator[Compared]:
    error = None
    loss, norm = None, None
    try:
        loss, norm = _run(model, capsule, device, scale)
    except (Exception, SystemExit) as raised:  # noqa: BLE001  # it may be the failure that is looked for
        error = reason(raised)
    then = capsule.facts.get("exception")
    if then is not None or error is not None:
        yield Compared("exception", then or "none", error or "none")
    if error is None:
        yield Compared("loss", capsule.facts.get("loss"), hex_of(loss))
        yield Compared("gradient norm", capsule.facts.get("gradient_norm"), hex_of(norm))
        known = capsule.facts.get("origin")
        yield Compared("first bad operation", _text(known), _text(origin.as_event()))


def _text(origin: Mapping[str, Any] | None) -> str | None:
    if origin is None or origin.get("phase") == "unknown":
        return None
    if origin["phase"] == NONE:
        return "none: all of the step is finite"
    where = origin["module"] or origin["tensor"] or "the step itself"
    told = f"{origin['phase']}: {origin['operation'] or 'brought in'} in {where}"
    ranges = ", ".join(f"{i['dtype']} {i['low']} to {i['high']}" for i in origin["inputs"])
    return f"{told}, {origin['value']} out of {ranges}" if ranges else told


def _run(
    model: nn.Module, capsule: Capsule, device: torch.device, scale: float
) -> tuple[float | None, float | None]:
    """Returns the unscaled loss and the norm of the unscaled gradients."""
    optimizers = _optimizers(model)
    scaler = _scaler(capsule, device)
    batch = _on(copy_exactly(capsule.state["batch"]), device)
    RandomStates.from_plain(capsule.state["random"]).set()
    with _around(capsule):
        loss = _loss_of(model, batch, capsule.facts)
    if loss is None:
        return None, None
    scaled = scaler.scale(loss) if scaler is not None else loss
    scaled.backward()
    norms = []
    for optimizer in optimizers:
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = gradient_norm(optimizer)
        norms += [] if norm is None else [float(norm)]
    return float(scaled.detach()) / scale, norms[0] if len(norms) == 1 else None


def _failed_step(capsule: Capsule, device: torch.device, scale: float) -> FailedStep:
    batch = _on(capsule.state["batch"], device)
    step = ShadowStep(lambda copied: _loss_of(copied, copy_exactly(batch), capsule.facts))
    start = Start(RandomStates.from_plain(capsule.state["random"]))
    return FailedStep(step, start, scale, batch)


def _loss_of(model: Any, batch: Any, facts: Mapping[str, Any]) -> Tensor | None:
    start = getattr(model, "on_train_batch_start", None)
    if start is not None and start(batch, facts["batch_index"]) == -1:
        return None
    takes_index = len(inspect.signature(model.training_step).parameters) > 1
    output = model.training_step(*((batch, facts["batch_index"]) if takes_index else (batch,)))
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return None if loss is None else loss / facts["micro_batches"]


def _optimizers(model: Any) -> Sequence[torch.optim.Optimizer]:
    configure = getattr(model, "configure_optimizers", None)
    if configure is None:
        return [torch.optim.SGD(model.parameters(), lr=0.0)]  # never stepped: gradients' keeper
    found = configure()
    if isinstance(found, torch.optim.Optimizer):
        return [found]
    if isinstance(found, Mapping):
        return [found["optimizer"]]
    first = found[0] if found else []
    several = first if isinstance(first, (list, tuple)) else found
    return [one["optimizer"] if isinstance(one, Mapping) else one for one in several]


def _scaler(capsule: Capsule, device: torch.device) -> torch.amp.GradScaler | None:
    state = capsule.state.get("scaler")
    if not state:
        return None
    scaler = torch.amp.GradScaler(device.type)
    scaler.load_state_dict(state)
    return scaler


@contextmanager
def _around(capsule: Capsule) -> Iterator[None]:
    """The autocast and the default dtype of the run's forward."""
    facts = capsule.facts
    dtype = None if facts["autocast"] is None else getattr(torch, facts["autocast"])
    device = "cuda" if _wants_cuda(capsule) else "cpu"
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, facts["default_dtype"]))
    try:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)


def _wants_cuda(capsule: Capsule) -> bool:
    return capsule.facts.get("device") == "cuda" and torch.cuda.is_available()


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_on(one, device) for one in value)
    if isinstance(value, dict):
        return {key: _on(one, device) for key, one in value.items()}
    return value
