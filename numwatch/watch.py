"""When numbers are recorded: the schedule, and one Snapshot a step out of taps and statistics."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from numwatch.errors import NumwatchError
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.taps.collector import Collector, SentRows
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.modules import attach_modules, attach_weights
from numwatch.taps.optimizers import OptimizerTaps
from numwatch.taps.scaler import Scaler, found_inf, handles_unscaling, loss_scale
from numwatch.taps.selection import select, weight_of
from numwatch.taps.tape import SentTape, Tape

EVERY_N_STEPS = 50
AMAX_EVERY_N_STEPS = 10


@dataclass(frozen=True)
class Schedule:
    """Which steps are recorded.

    Attributes:
        every_n_steps: Full rows at every step divisible by it.
        amax_every_n_steps: Amax and non-finites alone at each other step divisible by it; 0: never.
    """

    every_n_steps: int = EVERY_N_STEPS
    amax_every_n_steps: int = AMAX_EVERY_N_STEPS

    def __post_init__(self) -> None:
        """Refuses what cannot be a cadence.

        Raises:
            NumwatchError: `every_n_steps` is below 1 or `amax_every_n_steps` below 0.
        """
        for name, least in (("every_n_steps", 1), ("amax_every_n_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise NumwatchError(f"{name} must be an integer of at least {least}, got {value!r}")

    def mode(self, step: int, previous: int | None = None) -> Mode:
        """Returns what step `step` records: is it, or did it pass since `previous`, a multiple?

        Step numbers may leave some out: each optimizer of a manual optimization counts.
        """
        before = step - 1 if previous is None else previous
        if step // self.every_n_steps > before // self.every_n_steps:
            return Mode.FULL
        n = self.amax_every_n_steps
        return Mode.AMAX if n and step // n > before // n else Mode.OFF


@dataclass(frozen=True)
class _EndedStep:
    step: int
    epoch: int
    batch: int
    stepped: bool
    step_seconds: float
    numwatch_seconds: float


@dataclass(frozen=True)
class _Delivery:
    """Ended steps on their way to the host; rows belong to the last of them."""

    steps: Sequence[_EndedStep]
    tape: SentTape
    rows: SentRows | None

    def arrived(self) -> bool:
        return self.tape.parcel.arrived() and (self.rows is None or self.rows.parcel.arrived())

    def wait(self) -> None:
        self.tape.parcel.wait()
        if self.rows is not None:
            self.rows.parcel.wait()


class Watch:
    """Watches a model's tensors over the steps of a training.

    A step is one update of the weights: `begin`, any number of micro-batches, `end`. Nothing here
    waits for the device; `collect` hands out the snapshots that have arrived.
    """

    def __init__(
        self,
        model: nn.Module,
        gate: Gate,
        schedule: Schedule | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        self.gate = gate
        self.step: int | None = None
        self._schedule = schedule or Schedule()
        self._taps, slots = select(model, include, exclude)
        self._collector = Collector(self._taps, slots, gate)
        self._tape = Tape(device_of(model))
        self._optimizer_taps = OptimizerTaps(gate, self._tape)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._scaler: Scaler | None = None
        self._handles: list[RemovableHandle] = []
        self._module_handles: list[RemovableHandle] = []
        self._paused_mode = Mode.OFF
        self._ended: list[_EndedStep] = []
        self._deliveries: list[_Delivery] = []
        self._started = 0.0
        self._previous: int | None = None
        self._model = model
        self._hooked_weights: set[int] = set()
        self._carried_seconds = 0.0

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """Every slot, with what has been learnt of its tensors so far."""
        return self._collector.slots

    def attach(
        self, optimizers: Sequence[torch.optim.Optimizer] = (), scaler: Scaler | None = None
    ) -> None:
        """Puts the hooks in place, for the whole training."""
        self._optimizers = list(optimizers)
        self._scaler = scaler
        self._handles += self._optimizer_taps.attach(self._optimizers)
        self.resume()

    def detach(self) -> None:
        """Takes every hook off. What was sent can still be collected."""
        self.pause()
        self._paused_mode = self.gate.mode = Mode.OFF
        _remove(self._handles)
        self._hooked_weights.clear()

    def pause(self) -> None:
        """Takes the hooks off the modules for a validation.

        Its forwards are not the step's, and torch leaves its fast path for inference where a
        module carries hooks.
        """
        if self._module_handles:
            self._paused_mode, self.gate.mode = self.gate.mode, Mode.OFF
        _remove(self._module_handles)
        _remove(self.gate.step_handles)
        self.gate.model = None

    def resume(self) -> None:
        """Puts the hooks back on the modules."""
        if not self._module_handles:
            self.gate.model = self._model
            self.gate.mode = self._paused_mode
            self._module_handles = attach_modules(self._taps, self.gate, self._collector)

    def begin(self, step: int) -> None:
        """Opens a step, before its first forward."""
        # What numwatch did since the last step ended belongs to no step yet: this one carries it.
        self._carried_seconds = self.gate.take_seconds()
        self._started = time.perf_counter()
        self.step = step
        self._optimizer_taps.reset()
        self._tape.put("loss_scale_before", loss_scale(self._scaler))
        self.gate.mode = self._schedule.mode(step, self._previous)
        self._previous = step
        if self.gate.mode:
            self._handles += attach_weights(
                self._taps, self.gate, self._collector, self._hooked_weights
            )
            for tap in self._taps:
                weight = weight_of(tap.module)
                if "weight" in tap.slots and weight is not None and not is_lazy(weight):
                    self._collector.see(tap.slots["weight"], weight, tap)

    def add_loss(self, loss: Tensor | float) -> None:
        """Adds a micro-batch's share of the step's unscaled loss."""
        if not isinstance(loss, Tensor) or loss.numel() == 1:
            self._tape.add("loss", loss)

    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the gradients between unscaling and clipping, where the caller knows the time.

        Fused optimizers unscale within their step: theirs are seen when that begins.
        """
        if self._scaler is not None and handles_unscaling(optimizer):
            return
        # No flag means that nothing was unscaled: `training_step` returned None.
        flags: list[Tensor | float] = [*found_inf(self._scaler, optimizer)]
        for flag in flags or [0.0]:
            self._tape.add("found_inf", flag)
        self._optimizer_taps.see_gradients(optimizer)

    def end(self, *, epoch: int = 0, batch: int = 0) -> None:
        """Closes the step, after the optimizer's step and the scaler's update."""
        if self.step is None:
            return
        lr = _learning_rate(self._optimizers)
        if lr is not None:
            self._tape.put("lr", lr)
        self._tape.put("loss_scale_after", loss_scale(self._scaler))
        self._tape.next()
        rows = self._collector.send() if self.gate.mode else None
        _remove(self.gate.step_handles)
        self.gate.mode = Mode.OFF
        inside = self.gate.take_seconds()
        self._ended.append(
            _EndedStep(
                step=self.step,
                epoch=epoch,
                batch=batch,
                stepped=self._optimizer_taps.stepped or not self._optimizers,
                step_seconds=time.perf_counter() - self._started + self._carried_seconds,
                numwatch_seconds=inside + self._carried_seconds,
            )
        )
        self.step = None
        if rows is not None or self._tape.full:
            self._deliver(rows)

    def collect(self, *, everything: bool = False) -> list[Snapshot]:
        """Returns the snapshots that have arrived since the last call, in order of steps.

        Args:
            everything: Sends what is left and waits for it: at an epoch's or the training's end.
        """
        if everything and self._ended:
            self._deliver(None)
        snapshots: list[Snapshot] = []
        while self._deliveries:
            delivery = self._deliveries[0]
            if everything:
                delivery.wait()
            elif not delivery.arrived():
                break
            snapshots += _unpack(self._deliveries.pop(0), has_scaler=self._scaler is not None)
        return snapshots

    def _deliver(self, rows: SentRows | None) -> None:
        self._deliveries.append(_Delivery(self._ended, self._tape.send(), rows))
        self._ended = []


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _unpack(delivery: _Delivery, *, has_scaler: bool) -> list[Snapshot]:
    snapshots = []
    last = len(delivery.steps) - 1
    for i, (ended, line) in enumerate(zip(delivery.steps, delivery.tape.lines(), strict=True)):
        norm_squared = line["grad_norm_squared"]
        before, after = line["loss_scale_before"], line["loss_scale_after"]
        flag = line["found_inf"]
        # A fused optimizer's hooks fire on skipped steps too; then the flag alone tells.
        skipped = not ended.stepped or bool(flag)
        scalars = StepScalars(
            epoch=ended.epoch,
            batch=ended.batch,
            loss=line["loss"],
            lr=line["lr"],
            grad_norm=None if norm_squared is None else math.sqrt(norm_squared),
            loss_scale_before=1.0 if before is None else before,
            loss_scale_after=1.0 if after is None else after,
            found_inf=bool(flag) if flag is not None else has_scaler and skipped,
            skipped=skipped,
            step_seconds=ended.step_seconds,
            numwatch_seconds=ended.numwatch_seconds,
        )
        rows = None
        if i == last and delivery.rows is not None:
            rows = delivery.rows.rows(scalars.loss_scale_before)
        snapshots.append(Snapshot(ended.step, scalars, rows))
    return snapshots


def _learning_rate(optimizers: Sequence[torch.optim.Optimizer]) -> Tensor | float | None:
    """Returns the first optimizer's; some have none, or choose it themselves."""
    groups = optimizers[0].param_groups if optimizers else []
    lr = groups[0].get("lr") if groups else None
    return lr if isinstance(lr, (Tensor, float, int)) else None


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model's first parameter; the CPU without any."""
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")
