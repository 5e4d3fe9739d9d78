"""One attempt at a run: what is watched goes to the record, and from there to a person."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from numwatch.compiling import compile_for
from numwatch.failures import Failures
from numwatch.keeping import Keeping, View
from numwatch.micro_batch import MicroBatch
from numwatch.notices import Notices
from numwatch.ranks import PATIENCE_SECONDS, Reducer
from numwatch.settings import Settings
from numwatch.shadow import ShadowStep, reason
from numwatch.snapshot import SlotInfo
from numwatch.surroundings import device_name, precision_with_rounded, versions
from numwatch.taps.deepspeed import taps_and_scaler
from numwatch.taps.flags import accumulation_flags
from numwatch.taps.gate import Gate
from numwatch.taps.placement import of_many_ranks
from numwatch.taps.scaler import Scaler
from numwatch.taps.wrappers import plain_optimizer
from numwatch.watch import Watch

HURRY_SECONDS = 2.0
"""How long a run that failed waits for other ranks' last numbers."""


class Session:
    """Watches one attempt at a run, from its first step to its end or failure.

    Every method keeps numwatch's own errors away from the run: the first one ends the watching
    with a warning, and the methods do nothing from then on.
    """

    def __init__(
        self,
        model: nn.Module,
        directory: Path,
        *,
        settings: Settings,
        precision: str,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        scaler: Scaler | None = None,
        views: Callable[[], Sequence[View]] = tuple,
        console: Console | None = None,
        announced: bool = True,
    ) -> None:
        """Opens the record and puts the hooks in place.

        Args:
            model: What is watched.
            directory: The record's folder.
            settings: What the user chose.
            precision: As Lightning names it.
            optimizers: The model's.
            scaler: The gradient scaler, where there is one.
            views: Makes the places beside the record where snapshots are shown.
            console: Where summaries go; None for nowhere.
            announced: Whether `before_optimizer_step` and `see_loss` are called.
        """
        self.directory = directory.absolute()  # the run may change its working directory
        self._gate = Gate(strict=settings.strict)
        self._gate.on_break = self._release
        self._stop_on, self._audit = settings.stop_on, settings.audit
        self._started = self._tried = False
        self._watch: Watch | None = None
        self._keeping: Keeping | None = None
        self._reducer: Reducer | None = None
        self._failures: Failures | None = None
        with self._gate.watching(), ExitStack() as failing:
            failing.callback(self._release)  # by an interrupt, or an error of a strict watching
            self._reducer = Reducer() if of_many_ranks() else None
            first = self._reducer is None or self._reducer.first
            self._notices = Notices(self._event, console, first=first)
            chosen = settings.schedule, settings.include, settings.exclude, settings.update_samples
            self._watch = Watch(model, self._gate, *chosen, audit=settings.audit)
            if first:
                self._keeping = Keeping(
                    self.directory,
                    console,
                    views,
                    strict=settings.strict,
                    precision=precision_with_rounded(precision, model),
                    device=device_name(model, 1 if self._reducer is None else self._reducer.size),
                    arguments=asdict(settings),
                    versions=versions(),
                    flags=accumulation_flags(model),
                )
            compile_for(model, precision, settings, self._notices.compiling)
            make_taps, scaler = taps_and_scaler(optimizers, scaler)
            self._watch.attach([*map(plain_optimizer, optimizers)], scaler, make_taps)
            if self._keeping is not None and (settings.origin or settings.capsule_gb):
                self._failures = Failures(
                    model,
                    self._watch,
                    self._keeping.recorder,
                    self._gate,
                    settings,
                    precision=precision,
                    scaler=scaler,
                    announced=announced,
                )
            failing.pop_all()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Makes None of a copy: of whoever holds it, the copy watches nothing."""
        return type(None), ()

    @property
    def watching(self) -> bool:
        """Whether the watching goes on; where it has ended by an error, nothing is left behind."""
        self._gate.settle()
        if self._gate.broken and self._watch is not None:
            self._release()
        return self._watch is not None

    @property
    def step(self) -> int | None:
        """The step under way, None between steps."""
        return self._watch.step if self._watch else None

    @property
    def stopping(self) -> bool:
        """Whether the run is to end now: a capsule is kept, or a step was there to keep one of.

        Only rank 0 knows: what it asks others must be told of.
        """
        kept = self._failures is None or self._failures.kept or self._tried
        return self._critical and kept

    @property
    def _critical(self) -> bool:
        """Whether `stop_on` asks the run to end."""
        return self._stop_on is not None and self._keeping is not None and self._keeping.critical

    def begin_step(self, step: int) -> None:
        """Opens a step, before its first forward."""
        if self.watching and self._watch:
            with self._gate.watching():
                if not self._started:
                    # Compiling and opening the record belong to no step: an entry of their own.
                    self._started = True
                    self._event("start", step, numwatch_seconds=self._gate.take_seconds())
                self._watch.begin(step)
                if self._audit and self._watch.unaudited:
                    self._notices.unaudited(step, self._watch.unaudited)

    def shadow(self, step: Callable[[], ShadowStep]) -> None:
        """Runs the coming micro-batch in FP32 first, where that is due."""
        if self.watching and self._watch:
            with self._gate.watching():
                self._watch.shadow(step)

    def begin_batch(self, batch: Callable[[], MicroBatch]) -> None:
        """Takes note of a micro-batch before its forward, in case that it fails."""
        if self._failures and self.watching:
            with self._gate.watching():
                self._failures.wanted = self._critical
                self._failures.begin_batch(batch())

    def see_loss(self, loss: Tensor) -> None:
        """Takes note of the loss as backward starts from it, times the loss scale."""
        if self._failures and self.watching:
            with self._gate.watching():
                self._failures.see_loss(loss)

    def end_batch(self) -> None:
        """Looks into a micro-batch that failed, before its step ends, and lets go of it."""
        if self._failures and self.watching:
            with self._gate.watching():
                self._failures.end_batch()

    def keep_capsule(self, why: str, error: BaseException | None = None) -> None:
        """Keeps a capsule of the micro-batch under way, where there is one and none is kept yet."""
        if self._failures and self.watching:
            with self._gate.watching():
                self._failures.keep_capsule(why, error)

    def end_by(self, error: BaseException) -> None:
        """Takes note of the exception that ends the run, and keeps a capsule of its step."""
        if self.watching:
            with self._gate.watching():
                self._event("exception", self.step or 0, text=reason(error))
        self.keep_capsule("exception", error)

    def add_loss(self, loss: Tensor | float | None) -> None:
        """Adds a micro-batch's share of the step's unscaled loss."""
        if loss is not None and self.watching and self._watch:
            with self._gate.watching():
                self._watch.add_loss(loss)
                if self._failures:
                    self._failures.add_loss(loss)

    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the gradients between unscaling and clipping."""
        if self.watching and self._watch:
            with self._gate.watching():
                self._watch.before_optimizer_step(plain_optimizer(optimizer))
                if self._failures:
                    self._failures.before_optimizer_step(plain_optimizer(optimizer))

    def end_step(self, *, epoch: int = 0, batch: int = 0) -> None:
        """Closes the step, after the optimizer's step and the scaler's update."""
        if self.watching and self._watch:
            with self._gate.watching():
                self._tried = self._critical  # since before this step: its capsule was due
                step = self._watch.step or 0
                self._watch.end(epoch=epoch, batch=batch)
                self._notices.unseen(step, *self._watch.take_unseen())
                if self._failures:
                    self._failures.end_step()
                self._keep()
                if self._keeping:
                    self._keeping.end_step()
            if self._watch is not None and self._watch.blind:
                self._notices.blind()

    def pause(self) -> None:
        """Takes the hooks off the modules for a validation, which is not the step's."""
        if self.watching and self._watch:
            with self._gate.watching():
                self._watch.pause()

    def resume(self) -> None:
        """Puts them back."""
        if self.watching and self._watch:
            with self._gate.watching():
                self._watch.resume()

    def end_epoch(self, epoch: int) -> None:
        """Flushes the record and prints the epoch's summary out of it."""
        if self.watching:
            with self._gate.watching():
                self._keep(everything=True)
                if self._keeping:
                    self._keeping.end_epoch(epoch)

    def close(self, *, hurry: bool = False) -> None:
        """Takes numwatch off the model, flushes, and prints the summary of the whole run.

        Args:
            hurry: Whether other ranks may have come to another end, so that nobody waits for them.
        """
        self._gate.settle()
        if self._watch is not None:
            self._watch.detach()
            if self.watching:
                with self._gate.watching():
                    self._keep(everything=True, patience=HURRY_SECONDS if hurry else None)
                    if self._keeping:
                        self._keeping.end()
            self._release()
        if self._reducer is not None:
            self._reducer.close()
            self._reducer = None

    def _event(self, kind: str, step: int, **details: object) -> None:
        if self._keeping is not None:
            self._keeping.recorder.event(kind, step, **details)

    def _keep(self, *, everything: bool = False, patience: float | None = None) -> None:
        if self._watch is None:
            return
        deliveries = self._watch.deliveries(everything=everything)
        snapshots = [snapshot for delivery in deliveries for snapshot in delivery]
        slots: Sequence[SlotInfo] = self._watch.slots
        if self._reducer is not None:
            for delivery in deliveries:
                self._reducer.put(delivery, slots)
            wait = patience or PATIENCE_SECONDS if everything else 0.0
            snapshots, slots = self._reducer.take(wait)
            if self._reducer.unseen is not None and snapshots:
                self._notices.apart(snapshots[-1].step, self._reducer.unseen)
            if self._notices.alone(self._reducer) and self._keeping is None:
                self._release()  # nobody asks this rank any more
        if self._keeping is not None and self._watch is not None:
            self._keeping.keep(snapshots, slots, self._watch.bytes)
        if self._failures:
            for snapshot in snapshots:
                self._failures.see(snapshot)

    def _release(self) -> None:
        """Lets go of the model and the record, whatever state either is in."""
        if self._watch is not None:
            self._watch.detach()
        if self._failures is not None:
            self._failures.detach()
            self._failures = None
        if self._reducer is not None:
            self._reducer.leave()
        keeping, self._keeping, self._watch = self._keeping, None, None
        if keeping is not None:
            with self._gate.watching():
                keeping.recorder.close()
