"""What happens when a step fails: its origin is looked for, and a capsule of it is kept."""

import math
from collections import deque
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.forensics import NONE, UNKNOWN, FailedStep, Origin, find_origin, named_tensors
from numwatch.micro_batch import Around, MicroBatch
from numwatch.readable import SeenLoss, has_finite_gradients
from numwatch.recipes.occasions import COLLAPSED, Occasions
from numwatch.record import Recorder
from numwatch.record.capsule import GIGABYTE, hex_of, write_capsule
from numwatch.settings import Settings
from numwatch.shadow import reason
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.step_checks import StepChecks
from numwatch.taps.autocast import Autocast
from numwatch.taps.gate import Gate
from numwatch.taps.norms import gradient_norm
from numwatch.taps.scaler import Scaler
from numwatch.taps.starts import Start, Starts, versions_of
from numwatch.watch import Watch

LAST_STEPS = 20
"""So many steps' scalars go into a capsule."""

_NO_STEP = "numwatch was not told how to run a step: LoopWatch.shadow(loss_of) tells"
_LATE = "numwatch learnt of it when the optimizer had already changed the weights"


class Failures:
    """Looks into failed steps of a run.

    A step fails whose optimizer a scaler skips, and one without a scaler whose loss or gradients
    are not finite. Of the latter numwatch knows in time only where it can be read without waiting
    for the device: on a CPU, or where a copy has already arrived.

    Attributes:
        kept: Whether a capsule is kept, or none is to be.
        wanted: Whether a capsule is kept of the next step, though it does not fail.
    """

    def __init__(
        self,
        model: nn.Module,
        watch: Watch,
        recorder: Recorder,
        gate: Gate,
        settings: Settings,
        *,
        precision: str,
        scaler: Scaler | None = None,
        announced: bool,
    ) -> None:
        """Watches over the steps of a run.

        Args:
            model: The model.
            watch: What knows of the step under way.
            recorder: Where events and the capsule go.
            gate: Keeps numwatch's own errors away from the run.
            settings: What the user chose.
            precision: As Lightning names it.
            scaler: The gradient scaler, where there is one.
            announced: Whether `see_loss` and `before_optimizer_step` are called; else a hook on
                each optimizer does what it can.
        """
        self._gate, self._announced = gate, announced
        self._model, self._watch, self._recorder = model, watch, recorder
        self._precision = precision
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._origin, self._limit = settings.origin, settings.capsule_gb * GIGABYTE
        self._starts = Starts(model)
        self._batch: MicroBatch | None = None
        self._start: Start | None = None
        self._loss = SeenLoss()
        self._done = self.wanted = False
        self._occasions = Occasions()
        self._last: deque[tuple[int, StepScalars]] = deque(maxlen=LAST_STEPS)
        self._found: Origin | None = None
        self.kept = not self._limit
        self._checks = StepChecks(self.check)
        self._autocast = Autocast(model)
        if not announced:
            self._autocast.attach()
            self._checks.follow(watch.optimizers)

    def detach(self) -> None:
        """Takes its hooks off and lets go of the micro-batch under way."""
        self._batch = self._start = None
        self._loss.forget()
        self._autocast.detach()
        self._checks.detach()

    def end_step(self) -> None:
        """Ends a step: optimizers may have taken the places of others."""
        if not self._announced:
            self._checks.follow(self._watch.optimizers)

    def begin_batch(self, batch: MicroBatch) -> None:
        """Takes note of a micro-batch, before its forward."""
        tensors = [tensor for _, tensor in named_tensors(batch.batch)]
        self._batch, self._start = batch, self._starts.take(versions_of(tensors))
        self._loss.forget()
        self._done = False

    def see_loss(self, loss: Tensor) -> None:
        """Takes note of the loss that backward starts from, scaled, on its way to the host."""
        self._loss.see(loss)

    def add_loss(self, loss: Tensor | float) -> None:
        """Takes note of the unscaled loss, where nobody tells of the one before backward."""
        if not self._announced:
            self.see_loss(loss if isinstance(loss, Tensor) else torch.tensor(loss, device="cpu"))

    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks, where there is no scaler, whether the gradients are worth a step."""
        if self.wanted:
            self.keep_capsule("critical")  # while the weights are those of its forward
        if self._scaler is not None or self._done:
            return
        loss = self._loss.value
        if loss is not None and not math.isfinite(loss):
            self._fail("loss", loss)
        elif not self._are_finite(optimizer):
            self._fail("gradient", loss)

    def _are_finite(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether all gradients that lie on the CPU are finite."""
        norm = self._watch.gradient_norm(optimizer)  # of recorded steps, which need it anyway
        known = norm is not None and norm.device.type == "cpu" and math.isfinite(float(norm))
        return known or has_finite_gradients(optimizer)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Does the same where nobody calls it, from a hook on the optimizer."""
        with self._gate.hooks_stay(), self._gate.watching():
            if self._watch.step is not None:
                self.before_optimizer_step(optimizer)

    def end_batch(self) -> None:
        """Ends a micro-batch, after the scaler's update where the optimizer's turn has come."""
        loss = self._loss.value
        finite = loss is None or math.isfinite(loss)
        # Of a window the earlier micro-batches have no turn; a `training_step` may return None.
        ran = not self._announced or (self._watch.announced and self._loss.seen)
        if self._scaler is not None and ran and self._watch.skipped:
            self._occasions.skip()
            if not self._done:
                self._fail("skip" if finite else "loss", loss)
        elif not finite and not self._done and not self._watch.stepped:
            self._fail("loss", loss)
        elif self._watch.stepped:
            self._occasions.step()
        self._batch = self._start = None
        self._loss.forget()
        self._done = False

    def see(self, snapshot: Snapshot) -> None:
        """Takes a step's scalars, which may tell of a failure that was not known in time."""
        self._last.append((snapshot.step, snapshot.scalars))
        scalars = snapshot.scalars
        numbers = [n for n in (scalars.loss, scalars.grad_norm) if n is not None]
        finite = scalars.skipped or all(map(math.isfinite, numbers))
        if not finite and self._origin and self._occasions.late():
            self._write(Origin(UNKNOWN, note=_LATE), snapshot.step)

    def keep_capsule(self, why: str, error: BaseException | None = None) -> None:
        """Keeps a capsule of the micro-batch under way, unless one is kept or none is under way."""
        batch, start, step = self._batch, self._start, self._watch.step
        if self.kept or batch is None or start is None or step is None:
            return
        self.kept = True
        try:
            notes = self._notes(batch, start)
            facts = self._facts(why, batch, notes, error)
            state = self._state(batch, start)
            written = write_capsule(self._recorder.directory, state, facts, self._limit)
            told = {} if written else {"note": "not kept: one of an earlier attempt is there"}
            self._recorder.event("capsule", step, reason=why, **told)
        except Exception as fault:  # noqa: BLE001  # a full disk, a state that can't be copied
            self._recorder.event("capsule", step, reason=why, note=f"not kept: {reason(fault)}")

    def _fail(self, why: str, loss: float | None) -> None:
        self._done = True
        step = self._watch.step
        if step is None:
            return
        nonfinite = loss is not None and not math.isfinite(loss)
        if self._origin and self._occasions.due(nonfinite=nonfinite or why == "gradient"):
            self._found = self._search()
            self._write(self._found, step)
        if why != "skip":
            self.keep_capsule(why)
        elif self._occasions.long_row and self._scale() <= COLLAPSED:
            self.keep_capsule("collapse")

    def _search(self) -> Origin:
        batch, start = self._batch, self._start
        if batch is None or start is None:
            return Origin(UNKNOWN, note=_NO_STEP)
        if self._watch.stepped:
            return Origin(UNKNOWN, note=_LATE)
        failed = None
        try:
            failed = FailedStep(batch.step_of(), start, self._scale(), batch.batch)
        except Exception as error:  # noqa: BLE001  # a stand-in of the user's own objects
            return Origin(UNKNOWN, note=f"the step could not be run once more: {reason(error)}")
        found = find_origin(self._model, failed, self._around(batch))
        notes = self._notes(batch, start)
        if found.phase == NONE and batch.parts > 1:
            notes.append(f"of its {batch.parts} micro-batches this was the last")
        return replace(found, note="; ".join(n for n in (found.note, *notes) if n))

    def _write(self, origin: Origin, step: int) -> None:
        self._recorder.event("origin", step, **origin.as_event())

    def _notes(self, batch: MicroBatch, start: Start) -> list[str]:
        tensors = [tensor for _, tensor in named_tensors(batch.batch)]
        notes = []
        if versions_of(tensors) != start.versions:
            notes.append("the step had changed its batch in place")
        if self._watch.stepped:
            notes.append("the weights had already been changed")
        return notes

    def _state(self, batch: MicroBatch, start: Start) -> dict[str, Any]:
        state: dict[str, Any] = {
            "batch": batch.batch,
            "random": start.random.as_plain(),
            "module": {**self._model.state_dict(), **self._buffers(start, persistent=True)},
            "buffers": self._buffers(start, persistent=False),
            "optimizers": [optimizer.state_dict() for optimizer in self._watch.optimizers],
        }
        if self._scaler is not None:
            state["scaler"] = {**self._scaler.state_dict(), "scale": self._scale()}
        return state

    def _buffers(self, start: Start, *, persistent: bool) -> dict[str, Tensor]:
        own = self._model.state_dict().keys()
        return {name: t for name, t in start.buffers.items() if (name in own) is persistent}

    def _facts(
        self, why: str, batch: MicroBatch, notes: list[str], error: BaseException | None
    ) -> dict[str, Any]:
        loss, scale = self._loss.value, self._scale()
        if batch.batch is None:
            notes = [*notes, "the batch is not known: LoopWatch.shadow(loss_of, batch=...) tells"]
        device = next((t.device.type for t in self._model.parameters()), "cpu")
        with self._around(batch)():
            enabled = torch.is_autocast_enabled(device)
            autocast = str(torch.get_autocast_dtype(device)) if enabled else None
            default = str(torch.get_default_dtype())
        norms = [n for o in self._watch.optimizers if (n := gradient_norm(o)) is not None]
        alone = len(norms) == 1 and batch.parts == 1 and error is None
        return {
            "step": self._watch.step,
            "epoch": batch.epoch,
            "batch_index": batch.index,
            "micro_batches": batch.parts,
            "reason": why,
            "exception": None if error is None else reason(error),
            "precision": self._precision,
            "device": device,
            "autocast": None if autocast is None else autocast.removeprefix("torch."),
            "default_dtype": default.removeprefix("torch."),
            "loss": hex_of(loss if loss is None or not self._announced else loss / scale),
            "gradient_norm": hex_of(float(norms[0])) if alone else None,
            "loss_scale": hex_of(scale),
            "origin": self._found.as_event() if self._found is not None else None,
            "scalars": [{"step": step, **asdict(scalars)} for step, scalars in self._last],
            "notes": notes,
        }

    def _around(self, batch: MicroBatch) -> Around:
        return self._autocast.again if batch.around is None else batch.around

    def _scale(self) -> float:
        return float(self._watch.loss_scale)
