"""One Snapshot a step, out of taps and statistics, on the steps that the schedule says."""

import operator
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from numwatch.schedule import Schedule
from numwatch.shadow import ShadowStep, ShadowSteps
from numwatch.snapshot import SlotInfo, Snapshot
from numwatch.taps.audit import Audit
from numwatch.taps.collector import Collector
from numwatch.taps.culprits import Culprits
from numwatch.taps.delivery import EndedStep, Seen
from numwatch.taps.device import device_of
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.hooks import Removable, remove_all
from numwatch.taps.modules import attach_modules
from numwatch.taps.norms import has_gradients
from numwatch.taps.optimizers import OptimizerTaps
from numwatch.taps.outbox import Outbox, in_order
from numwatch.taps.parameters import Parameters
from numwatch.taps.reduced import ReducedGradients
from numwatch.taps.sampling import SAMPLES
from numwatch.taps.scaler import Scaler, loss_scale
from numwatch.taps.scripted import scripted
from numwatch.taps.selection import inner_products, select
from numwatch.taps.tape import Tape, loss_scale_column
from numwatch.taps.traced import anchor_on
from numwatch.taps.updates import UpdateTaps
from numwatch.taps.weights import WeightTaps


class Watch:
    """Watches a model's tensors over the steps of a training.

    A step is one update of the weights: `begin`, any number of micro-batches, `end`. Nothing here
    waits for the device; `collect` hands out the snapshots that have arrived.

    Attributes:
        gate: The switch of its hooks.
        step: The step under way, None between steps.
    """

    def __init__(
        self,
        model: nn.Module,
        gate: Gate,
        schedule: Schedule | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        update_samples: int | None = SAMPLES,
        *,
        audit: bool = False,
    ) -> None:
        self.gate = gate
        self.step: int | None = None
        self._schedule = schedule or Schedule()
        self._taps, slots = select(model, include, exclude)
        self._collector = Collector(self._taps, slots, gate)
        self._weights = WeightTaps(self._taps, gate, self._collector)
        self._audit = Audit(model, gate, due=audit)
        self._shadow = ShadowSteps(model, self._taps, len(slots), self._collector)
        self._parameters = Parameters(model, update_samples, include, exclude)
        self._updates = UpdateTaps(self._parameters) if self._parameters.limit != 0 else None
        self._device = device_of(model)
        self._scaler: Scaler | None = None
        self._follow([])
        self._handles: list[Removable] = []
        self._module_handles: list[Removable] = []
        self._paused_mode = Mode.OFF
        self._outbox = Outbox()
        self._started = 0.0
        self._previous: int | None = None
        self._counted_blocks: int | None = None
        self._model, self._carried_seconds, self._trained = model, 0.0, False
        self._unseen = list(filter(None, [inner_products(self._taps), scripted(model)]))
        self._known: tuple[tuple[SlotInfo, ...], ...] = ()
        self._slots: tuple[SlotInfo, ...] = ()

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """Every slot, with what has been learnt of its tensors so far.

        The same object until something new is learnt.
        """
        updates = self._updates.slots if self._updates else ()
        known = (self._collector.table.slots, updates, self._reduced.slots)
        if len(self._known) != len(known) or any(map(operator.is_not, known, self._known)):
            self._known, self._slots = known, tuple(slot for slots in known for slot in slots)
        return self._slots

    @property
    def unaudited(self) -> str | None:
        """Why the operations of no step are noted; None where they are."""
        return self._audit.fault

    @property
    def blind(self) -> bool:
        """Whether no module's hook has fired yet, though a recorded step has trained.

        A graph that was traced without hooks never calls any.
        """
        return self._trained and not self._collector.table.called

    def take_unseen(self) -> list[str]:
        """Returns what, as has come to light since the last call, the record does not hold."""
        unseen, self._unseen = self._unseen, []
        return unseen

    @property
    def loss_scale(self) -> Tensor | float:
        """The loss scale that was in force when the step under way began, on the device."""
        value = self._tape.value(loss_scale_column(0))
        return loss_scale(self._scaler) if value is None else value

    @property
    def stepped(self) -> bool:
        """Whether, as far as the host knows, weights have changed since the step began."""
        return self._optimizer_taps.changed

    @property
    def announced(self) -> bool:
        """Whether somebody has told of an optimizer's turn since then."""
        return self._optimizer_taps.turns > 0

    @property
    def skipped(self) -> bool:
        """Whether the host knows that the scaler has left out an optimizer since then."""
        return self._optimizer_taps.skipped(self._scaler)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that were given, or what has taken their places."""
        return self._optimizer_taps.optimizers

    @property
    def bytes(self) -> int:
        """Memory numwatch holds on the devices, at its most so far."""
        updates = self._updates.bytes if self._updates else 0
        return self._collector.bytes + self._tape.bytes + updates + self._shadow.bytes

    def attach(
        self,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        scaler: Scaler | None = None,
        make_taps: Callable[..., OptimizerTaps] = OptimizerTaps,
    ) -> None:
        """Puts the hooks in place, for the whole training."""
        self._follow(optimizers, make_taps)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._shadow.scaler = self._scaler
        self._handles.append(self._optimizer_taps)  # before an interrupt can come
        self._optimizer_taps.attach()
        self.resume()

    def detach(self) -> None:
        """Takes every hook off. What was sent can still be collected."""
        self.pause()
        self._paused_mode = Mode.OFF
        self.gate.switch(Mode.OFF)
        remove_all(self._handles)
        self._weights.detach()
        self._collector.drop_rows()

    def pause(self) -> None:
        """Takes the hooks off the modules for a validation.

        Its forwards are not the step's, and torch leaves its fast path for inference where a
        module carries hooks.
        """
        self._audit.stop()
        if self._module_handles:
            self._paused_mode = self.gate.mode
            self.gate.switch(Mode.OFF)
        remove_all(self._module_handles)
        self._weights.forget_frozen()
        remove_all(self.gate.step_handles)
        self.gate.model, self._weights.at_rest = None, {}

    def resume(self) -> None:
        """Puts the hooks back on the modules."""
        if not self._module_handles:
            self.gate.model = self._model
            self.gate.switch(self._paused_mode)
            self._weights.look_for_shards(self._model)
            for device in {parameter.device for parameter in self._model.parameters()}:
                anchor_on(device)
                self._collector.ready(device)
            self._module_handles = attach_modules(
                self._taps, self.gate, self._collector, self._device, self._weights.at_rest
            )
            self._weights.await_frozen()

    def begin(self, step: int) -> None:
        """Opens a step, before its first forward."""
        # What numwatch did since the last step ended belongs to no step yet: this one carries it.
        self._carried_seconds = self.gate.take_seconds()
        self._started = time.perf_counter()
        self.step = step
        self._optimizer_taps.reset()
        self._tape.put(loss_scale_column(0), loss_scale(self._scaler))
        self.gate.switch(self._schedule.mode(step, self._previous))
        self._shadow.due = self._schedule.shadow(step, self._previous)
        self._previous = step
        blocks = self.gate.mode is Mode.FULL and self._schedule.blocks(step, self._counted_blocks)
        self._counted_blocks = step if blocks else self._counted_blocks
        self._collector.operands.due = blocks
        self._weights.begin()
        self._audit.begin()

    def shadow(self, step: Callable[[], ShadowStep]) -> None:
        """Runs the step's first micro-batch in FP32, before the run does, where that is due."""
        self._shadow.run(step)

    def add_loss(self, loss: Tensor | float) -> None:
        """Adds a micro-batch's share of the step's unscaled loss, when its backward is over."""
        self._shadow.end()
        if not isinstance(loss, Tensor) or loss.numel() == 1:
            self._tape.add("loss", loss)

    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the gradients between unscaling and clipping, if the caller knows the time."""
        if self.step is not None:
            self._optimizer_taps.announce(optimizer, self._scaler)
            self._collector.turn = self._optimizer_taps.turns

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Returns the norm of an optimizer's gradients at its turn; None where not recorded."""
        return self._optimizer_taps.norm_now(optimizer)

    def end(self, *, epoch: int = 0, batch: int = 0) -> None:
        """Closes the step, after the optimizer's step and the scaler's update."""
        self._audit.stop()
        if self.step is None:
            return
        taps = self._optimizer_taps
        self._unseen += taps.finish(self._scaler)
        self._tape.put("loss_scale_after", loss_scale(self._scaler))
        stepped = any(taps.stepped) or taps.strays.stepped
        trained = stepped or self._tape.value("loss") is not None
        self._tape.next()
        seen = None
        if self.gate.mode is Mode.FULL:
            self._unseen += taps.unseen(self._scaler)
        if self.gate.mode:
            updates = self._updates.take() if self._updates else []
            comparison = self._shadow.send()
            rows, blocks = self._collector.send()
            reduced, audit = self._reduced.take(), self._audit.send()
            seen = Seen(rows, updates, comparison, reduced, audit, blocks)
            self._trained = self._trained or trained or has_gradients(self._model)
        remove_all(self.gate.step_handles)
        self.gate.switch(Mode.OFF)
        self._outbox.put(
            EndedStep(
                step=self.step,
                epoch=epoch,
                batch=batch,
                announced=taps.announced,
                stepped=taps.stepped,
                moved=taps.moved,
                scaled=self._scaler is not None,
                left_out=self._scaler is not None and not taps.optimizers and taps.strays.idle,
                step_seconds=time.perf_counter() - self._started + self._carried_seconds,
                numwatch_seconds=self.gate.take_seconds() + self._carried_seconds,
            )
        )
        self.step = None
        if seen is not None or self._tape.full:
            self._outbox.send(self._tape, self._culprits, seen)

    def collect(self, *, everything: bool = False) -> list[Snapshot]:
        """Returns the snapshots of `deliveries`, in order of steps."""
        return in_order(self.deliveries(everything=everything))

    def deliveries(self, *, everything: bool = False) -> list[list[Snapshot]]:
        """Returns the same as it was sent: several ranks send the same steps together.

        When it arrives differs. Of each delivery the last step may have rows.

        Args:
            everything: Sends what is left and waits for it: at an epoch's or the training's end.
        """
        if everything:
            return self._outbox.flush(self._tape, self._culprits)
        return self._outbox.arrived()

    def _follow(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        make_taps: Callable[..., OptimizerTaps] = OptimizerTaps,
    ) -> None:
        self._tape = Tape(self._device, len(optimizers))
        self._culprits = Culprits(self._parameters, self._device)
        self._reduced = ReducedGradients(self._parameters)
        own = self.gate, self._tape, self._culprits, self._updates, self._reduced, self._parameters
        self._optimizer_taps = make_taps(optimizers, *own)
