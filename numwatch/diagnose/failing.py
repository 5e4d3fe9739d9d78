"""What was not finite first, in each step in which something was not."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numwatch.diagnose.evidence import Evidence, Ints
from numwatch.snapshot import GRADIENT_ROLES, path_of, role_of

PHASES = ("data", "parameter", "forward", "loss", "backward")
_IN_ROWS = {
    "parameter": ("weight",),
    "forward": ("input", "output"),
    "backward": GRADIENT_ROLES,
}
"""Phases that rows tell of, in order, and the roles of their slots."""
# Of these an infinite result is no overflow: their inputs are where a function has a pole.
_POLES = ("div", "log", "log10", "log1p", "log2", "logit", "reciprocal", "rsqrt", "true_divide")


@dataclass(frozen=True)
class Failure:
    """The first value of a step that was not finite.

    Attributes:
        step: The step.
        phase: One of `PHASES`.
        value: "nan", "inf", or "" where that is not known.
        slot: The slot, module or parameter it is in; None where that is not known.
        order: Where in the step's data flow that stands, None where not known.
        operation: The operation that made it, "" where not known.
        source: Its source line, likewise.
        inputs: What the operation took, as an `origin` event has it.
        count: Elements of the slot that were not finite; 0 where not counted.
        tensor: Name of the batch's tensor or the parameter, "" where not known.
        note: What should be known of this.
    """

    step: int
    phase: str
    value: str = ""
    slot: str | None = None
    order: float | None = None
    operation: str = ""
    source: str = ""
    inputs: tuple[Mapping[str, Any], ...] = ()
    count: int = 0
    tensor: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """Short name of the operation: "exp" of "aten.exp.default"."""
        parts = self.operation.split(".")
        return (parts[1] if len(parts) > 1 else parts[0]).strip("_")

    @property
    def at_a_pole(self) -> bool:
        """Whether the operation was asked for a value where it has none: 1/0, log 0."""
        if self.name not in _POLES:
            return False
        divisor = self.inputs[-1] if self.inputs else None
        if divisor is None or self.name in ("log1p", "logit"):
            return True
        low, high = _number(divisor.get("low")), _number(divisor.get("high"))
        return low <= 0.0 <= high

    @property
    def overflow(self) -> bool:
        """Whether a finite result was too large for its format."""
        return self.value == "inf" and not self.at_a_pole


def failures(evidence: Evidence) -> list[Failure]:
    """Returns what failed first in each step in which something did, by rising step.

    Known from an `origin` event, else from the step's rows, else from its scalars. Steps whose
    gradients alone are not finite are among them: under a scaler these are part of its work. What
    is known less exactly of later steps than an origin told of an earlier one is left out.
    """
    origins = _origins(evidence)
    others = evidence.once(_without_origins)
    skipped = set(evidence.steps.step[evidence.steps.skipped].tolist())
    known = min(
        (o.step for o in origins.values() if o.phase != "backward" or o.step not in skipped),
        default=math.inf,
    )
    told = {
        step: failure
        for step, failure in others.items()
        if step < known or failure.phase in ("parameter", "backward")
    }
    # An echo of a forward that was not looked at says "loss" of a step before which more is known.
    vague = min((each.step for each in told.values() if each.phase != "backward"), default=math.inf)
    found = {
        step: failure
        for step, failure in told.items()
        if not (failure.note and step > vague and failure.phase == "loss")
    }
    return [each for _, each in sorted({**found, **origins}.items())]


def nonfinite_steps(evidence: Evidence) -> int:
    """Returns how many steps had a loss, or anything seen of the forward, that was not finite."""
    others = {**evidence.once(_without_origins), **_origins(evidence)}
    return sum(failure.phase != "backward" for failure in others.values())


def failed(evidence: Evidence, phase: str) -> list[Failure]:
    """Returns the failures of one phase."""
    return [failure for failure in evidence.once(failures) if failure.phase == phase]


def _without_origins(evidence: Evidence) -> dict[int, Failure]:
    return {**_from_scalars(evidence), **_from_rows(evidence)}


def _origins(evidence: Evidence) -> dict[int, Failure]:
    found = {}
    for event in evidence.events_of("origin"):
        phase = event.get("phase")
        if phase not in PHASES:
            continue
        module = str(event.get("module") or "")
        tensor = str(event.get("tensor") or "")
        inputs = event.get("inputs") or ()
        place = tensor if phase in ("parameter", "data") else module
        found[int(event["step"])] = Failure(
            step=int(event["step"]),
            phase=phase,
            value=value if (value := event.get("value")) in ("nan", "inf") else "",
            slot=place or None,
            order=_order_of_module(evidence, module, phase),
            operation=str(event.get("operation") or ""),
            source=str(event.get("source") or ""),
            inputs=tuple(each for each in inputs if isinstance(each, dict)),
            count=_count(inputs) if phase in ("parameter", "data") else 0,
            tensor=tensor,
            note=str(event.get("note") or ""),
        )
    return found


def _from_rows(evidence: Evidence) -> dict[int, Failure]:
    failing = evidence.steps.step[_bad(evidence)]
    seen = {phase: _first_slots(evidence, phase, failing) for phase in _IN_ROWS}
    steps = evidence.steps
    known = steps.loss_known
    losses = dict(zip(steps.step[known].tolist(), steps.loss[known].tolist(), strict=True))
    first_input = _first_input(evidence)
    weighted = {info.module for info in evidence.slots.values() if info.role == "weight"}
    looked_at = _recorded_steps(evidence).intersection(failing.tolist())
    found = {}
    for step in sorted(looked_at.union(*seen.values())):
        for phase in _IN_ROWS:
            loss = losses.get(step, 0.0)
            if phase == "backward" and not math.isfinite(loss):
                found[step] = Failure(step, "loss", "nan" if math.isnan(loss) else "inf")
                break
            failure = seen[phase].get(step)
            if failure is not None and not _weights_moved(failure, weighted):
                if failure.slot == first_input:
                    made = _made_later(evidence, step)
                    failure = made or replace(failure, phase="data")
                found[step] = failure
                break
    return found


def _made_later(evidence: Evidence, step: int) -> Failure | None:
    """Returns the first output that is infinite of a finite input.

    The module that takes the batch may be called again, with what another one has made of it.
    """
    for slot, _, series in evidence.by_role("output"):
        taken = evidence.series(f"{path_of(slot)}:input")
        at, before = np.flatnonzero(series.step == step), np.flatnonzero(taken.step == step)
        if not len(at) or not len(before) or taken.nonfinite[before[0]] > 0:
            continue
        if series.posinfs[at[0]] + series.neginfs[at[0]] > 0:
            count = int(series.nonfinite[at[0]])
            return Failure(step, "forward", "inf", slot, evidence.order(slot), count=count)
    return None


def _first_slots(evidence: Evidence, phase: str, failing: Ints) -> dict[int, Failure]:
    """Returns the first slot of a phase, in data-flow order, that was not finite, step by step."""
    found: dict[int, Failure] = {}
    done = np.zeros(0, np.int64)
    for slot, _, series in evidence.by_role(*_IN_ROWS[phase]):
        nonfinite = series.nonfinite > 0
        if not nonfinite.any():
            continue
        if phase == "forward":
            # Masks of -inf are intended: they are there in steps that do not fail, too.
            masked = nonfinite & (series.nans == 0) & (series.posinfs == 0)
            if (masked & ~np.isin(series.step, failing)).any():
                nonfinite &= ~masked
        new = np.flatnonzero(nonfinite & ~np.isin(series.step, done))
        done = np.union1d(done, series.step[new])
        order = evidence.order(slot)
        for i in new:
            # Beside NaN a -inf may be a mask.
            infinite = series.posinfs[i] > 0 or series.nans[i] == 0
            found[int(series.step[i])] = Failure(
                step=int(series.step[i]),
                phase=phase,
                value="inf" if infinite else "nan",
                slot=slot,
                order=order,
                count=int(series.nonfinite[i]),
            )
    return found


def _weights_moved(failure: Failure, weighted: Collection[str]) -> bool:
    """Whether weights turned NaN between two forwards of a step, as under manual optimization.

    Then a product is NaN, without an infinity, of an input and of weights that were finite when the
    step began.
    """
    slot = failure.slot or ""
    return role_of(slot) == "output" and failure.value == "nan" and path_of(slot) in weighted


def _from_scalars(evidence: Evidence) -> dict[int, Failure]:
    steps = evidence.steps
    found = {}
    for i in np.flatnonzero(_bad(evidence)):
        step, loss = int(steps.step[i]), float(steps.loss[i])
        if math.isfinite(loss) or not steps.loss_known[i]:
            parameters = evidence.in_order(f"{p}:grad" for p in steps.nonfinite_parameters[i])
            slot = parameters[0].rpartition(":")[0] if parameters else None
            found[step] = Failure(step, "backward", slot=slot, count=0)
        else:
            value = "nan" if math.isnan(loss) else "inf"
            note = "tensors were not recorded at this step"
            found[step] = Failure(step, "loss", value, note=note)
    return found


def _bad(evidence: Evidence) -> Any:
    """Returns which steps were not finite, as far as their scalars know."""
    steps = evidence.steps
    lost = ~np.isfinite(steps.loss) & steps.loss_known
    return lost | steps.found_inf | (steps.grad_norm_known & ~np.isfinite(steps.grad_norm))


def _recorded_steps(evidence: Evidence) -> set[int]:
    """Steps at which forward and backward were looked at."""
    longest = max(
        (series for _, _, series in evidence.by_role("output", "input")), key=len, default=None
    )
    return set() if longest is None else set(longest.step.tolist())


def _first_input(evidence: Evidence) -> str | None:
    """Returns the slot that takes the batch: the first input of a step."""
    inputs = evidence.in_order(slot for slot, _, _ in evidence.by_role("input"))
    return inputs[0] if inputs and evidence.order(inputs[0]) is not None else None


def _order_of_module(evidence: Evidence, module: str, phase: str) -> float | None:
    """Returns where a module's slots of a phase stand in the step; None where it has none.

    The root and modules that hold others stand where the first of those does.
    """
    orders = [
        float(info.order)
        for info in evidence.slots.values()
        if info.order is not None
        and info.role in _IN_ROWS.get(phase, ())
        and (info.module == module or info.module.startswith(f"{module}."))
    ]
    return min(orders, default=None) if module else None


def _count(inputs: Iterable[object]) -> int:
    """Returns how many elements of what an operation took were not finite."""
    counts = [_number(each.get("nonfinite")) for each in inputs if isinstance(each, dict)]
    return sum(int(count) for count in counts if math.isfinite(count))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def mentioned(failures_: Iterable[Failure]) -> tuple[str, ...]:
    """Returns the places of failures, each once, in order."""
    return tuple(dict.fromkeys(each.slot for each in failures_ if each.slot))
