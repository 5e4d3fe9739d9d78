"""Hooks on optimizers: whether each was really stepped, its gradients, and what its step did."""

import operator
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from numwatch.taps.culprits import Culprits
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.hooks import Removable, remove_all
from numwatch.taps.norms import gradient_norm, gradients_of
from numwatch.taps.parameters import Parameters
from numwatch.taps.placement import is_partial
from numwatch.taps.reduced import ReducedGradients
from numwatch.taps.scaler import Scaler, found_inf, handles_unscaling, loss_scale
from numwatch.taps.step_hooks import follow_steps, follow_strays, tells_of_steps
from numwatch.taps.strays import Strays
from numwatch.taps.successors import Successors
from numwatch.taps.tape import Tape, found_inf_column, learning_rate, loss_scale_column
from numwatch.taps.updates import UpdateTaps


class OptimizerTaps:
    """Follows each optimizer's turns in a step.

    A scaler that found an inf does not call an ordinary optimizer, so its hooks do not fire. It
    does call a fused one, handing it `found_inf`; that flag goes to the tape.

    Attributes:
        optimizers: Those that were given, or what has taken their places.
        gate: The switch of all hooks.
        strays: Optimizers that were found by their steps alone.
        announced: How often each optimizer's turn came since `reset`, where somebody tells.
        stepped: How often each was called.
        moved: Whether any was ever seen to be called.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        gate: Gate,
        tape: Tape,
        culprits: Culprits,
        updates: UpdateTaps | None,
        reduced: ReducedGradients,
        parameters: Parameters,
    ) -> None:
        self.optimizers = list(optimizers)
        self.strays = Strays(optimizers, parameters)
        self._successors = Successors(self.strays, parameters)
        self._handles: list[list[Removable]] = []
        self._any: list[Removable] = []
        self.gate, self._tape, self._updates = gate, tape, updates
        self._culprits, self._reduced = culprits, reduced
        self._norms: dict[int, Tensor | None] = {}
        self.moved = False
        self.announced = [0] * len(self.optimizers)
        self.stepped = [0] * len(self.optimizers)

    def reset(self) -> None:
        """Starts a step."""
        self.announced = [0] * len(self.optimizers)
        self.stepped = [0] * len(self.optimizers)
        self._norms.clear()
        self._successors.reset()
        if self._updates is not None:
            self._updates.reset()

    def attach(self) -> None:
        """Hooks the optimizers, and where others are possible those that come to light later."""
        for optimizer in self.optimizers:
            self._handles.append(self._hooks_on(optimizer))
        if self.strays.possible:
            self._any = follow_strays(self)

    def remove(self) -> None:
        """Takes the hooks off the optimizers."""
        for handles in (*self._handles, self._any):
            remove_all(handles)

    def _hooks_on(self, optimizer: torch.optim.Optimizer) -> list[Removable]:
        return follow_steps(optimizer, self) if tells_of_steps(optimizer) else []

    def is_stray(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer was not given and steps the model's parameters all the same."""
        known = self.strays.known(optimizer)
        if known is None:
            # Once: other threads train other models.
            with self.gate.hooks_stay(), self.gate.watching():
                known = self.strays.has(optimizer)
        self._successors.pass_by(optimizer)
        return bool(known)

    def see_step(self, optimizer: torch.optim.Optimizer, *, stray: bool) -> None:
        """Takes note of a step that is not recorded, of one that may be a stray or of a given one.

        Args:
            optimizer: The optimizer.
            stray: Whether it is asked for strays alone.
        """
        if not stray:
            self._count(optimizer)
        elif (self.optimizers or not self.strays.stepped) and self.is_stray(optimizer):
            self.strays.stepped = True

    @property
    def turns(self) -> int:
        """How many turns were announced since `reset`."""
        return sum(self.announced)

    def announce(self, optimizer: torch.optim.Optimizer, scaler: Scaler | None) -> None:
        """Takes note of an optimizer's turn, between unscaling and clipping.

        Fused optimizers unscale within their step: theirs are seen when that begins.
        """
        position = self.position(optimizer)
        if position is None:
            return
        if self.turns < len(self.optimizers):
            self._tape.put(loss_scale_column(self.turns), loss_scale(scaler))
        self.announced[position] += 1
        if not tells_of_steps(optimizer):
            self.stepped[position] += 1  # for all that can be known
        if scaler is not None and self._must_look_early(optimizer):
            self._culprits.look(self._tape.line, position, optimizer)
        if scaler is not None and handles_unscaling(optimizer):
            return
        # No flag means that nothing was unscaled: `training_step` returned None.
        flags: list[Tensor | float] = [*found_inf(scaler, optimizer)]
        for flag in flags or [0.0]:
            self._tape.add(found_inf_column(position), flag)
        self._see_gradients(optimizer)
        if self._updates is not None and self.gate.mode is Mode.FULL:
            self._updates.see_gradients(optimizer)

    def finish(self, scaler: Scaler | None) -> list[str]:
        """Ends a step: looks whose gradients were to blame for the turns that were skipped.

        Returns:
            What was not seen of the step.
        """
        unseen = list(self._hand_over())
        lr = learning_rate(chain(self.optimizers, self.strays))
        if lr is not None:
            self._tape.put("lr", lr)
        if scaler is not None:
            self._blame()
        return unseen

    def _blame(self) -> None:
        for position, optimizer in enumerate(self.optimizers):
            expected = self.announced[position] if self.turns else 1
            seen = self.turns and self._must_look_early(optimizer)
            unsure = handles_unscaling(optimizer)
            if not seen and (unsure or self.stepped[position] < expected):
                self._culprits.look(self._tape.line, position, optimizer)

    def _hand_over(self) -> Iterator[str]:
        """Gives the places of optimizers that no longer step to those that do, or back."""
        for position, given in enumerate(self.optimizers):
            if self.announced[position] or not (self.moved and tells_of_steps(given)):
                continue
            missed = not self.stepped[position]
            if missed:
                self._any = self._any or follow_strays(self)  # from the first such step on
            successor = self._successors.find(given, missed=missed)
            if successor is not None:
                remove_all(self._handles[position])
                self._handles[position] = self._hooks_on(successor)
                self.optimizers[position] = successor
                self.stepped[position] += 1
                yield self._successors.replace(given, successor)

    def skipped(self, scaler: Scaler | None) -> bool:
        """Whether the host knows that a scaler has left out an optimizer of the step under way.

        Of a fused optimizer it knows on a CPU alone.
        """
        if scaler is None:
            return False
        if not self.turns and not any(self.stepped) and not self.strays.stepped:
            return True
        if any(self._flagged(i) for i in range(len(self.optimizers))):
            return True
        return any(map(operator.lt, self.stepped, self.announced))

    @property
    def changed(self) -> bool:
        """Whether, as far as the host knows, an optimizer has changed weights since `reset`."""
        given = any(count and not self._flagged(i) for i, count in enumerate(self.stepped))
        return given or self.strays.stepped

    def unseen(self, scaler: Scaler | None) -> Iterator[str]:
        """Yields what is not seen of the updates of the step under way, one recorded in full."""
        if self._updates is None:
            return
        for optimizer in self.optimizers:
            if not tells_of_steps(optimizer):
                yield f"updates and state: {type(optimizer).__name__} tells nobody of its steps"
        if not self.optimizers and not any(self.strays):
            yield "updates, state and gradient norm: no optimizer was given or found by its steps"
        telling = filter(tells_of_steps, self.optimizers)
        names = ", ".join(dict.fromkeys(type(one).__name__ for one in telling))
        if names and not (self.moved or any(self.strays)) and scaler is None:
            yield f"updates and state: {names} took no step that torch tells of"
        yield from self._updates.unreadable(self.optimizers)
        lost, unsure = self._updates.given.lost, self._updates.unsure
        if unsure is not None:
            yield f"updates and state: which steps {unsure} skipped; it was not given to numwatch"
        if lost is not None:
            yield f"updates and state: no gradients were left when a step of {lost} was over"

    def _flagged(self, position: int) -> bool:
        """Whether an optimizer's gradients were found non-finite, where that can be read."""
        flag = self._tape.value(found_inf_column(position))
        return flag is not None and flag.device.type == "cpu" and bool(flag)

    def before_step(self, optimizer: torch.optim.Optimizer, *, has_closure: bool = False) -> None:
        """Takes what a scaler hands a fused optimizer for the time of its step.

        Where nobody tells of an earlier moment, the gradients are seen here, unless a closure is
        yet to make them.
        """
        flag = getattr(optimizer, "found_inf", None)
        position = self.position(optimizer)
        scale: Tensor | float = 1.0
        with self.gate.watching():
            if isinstance(flag, Tensor):
                given = getattr(optimizer, "grad_scale", None)
                scale = 1.0 if given is None else given
                if position is not None:
                    self._tape.add(found_inf_column(position), flag)
            if not has_closure:
                self._see_gradients(optimizer, scale)
            if self._updates is not None and self.gate.mode is Mode.FULL:
                self._updates.see_gradients(optimizer, has_closure=has_closure)
                self._updates.before_step(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the step; what a closure has made is seen here at the latest."""
        position = self._count(optimizer)
        with self.gate.watching():
            self._see_gradients(optimizer)
        if self._updates is not None and self.gate.mode is Mode.FULL:
            with self.gate.watching():
                self._updates.after_step(optimizer, position)

    def _count(self, optimizer: torch.optim.Optimizer) -> int | None:
        position = self.position(optimizer)
        if position is None:
            self.strays.stepped = True
        else:
            self.stepped[position] += 1
            self.moved = True
        return position

    def position(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Returns which of the optimizers this is."""
        for position, known in enumerate(self.optimizers):
            if known is optimizer:
                return position
        return None

    def norm_now(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Returns the norm of an optimizer's gradients, which they are about to be used with.

        None on steps that are not recorded.
        """
        self._see_gradients(optimizer)
        return self._norms.get(id(optimizer))

    def _must_look_early(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether culprits must be looked for at every announced turn.

        Of a fused optimizer the host never learns that it was skipped, and who steps several may
        clear their gradients before the step ends.
        """
        return len(self.optimizers) > 1 or handles_unscaling(optimizer)

    def _see_gradients(self, optimizer: torch.optim.Optimizer, scale: Tensor | float = 1.0) -> None:
        """Adds the norm of an optimizer's gradients to the step's, once, on recorded steps.

        Args:
            optimizer: The optimizer.
            scale: What its gradients are still multiplied by.
        """
        if not self.gate.mode or id(optimizer) in self._norms:
            return
        summands = any(map(is_partial, gradients_of(optimizer)))  # of a norm nobody knows
        norm = self._norms[id(optimizer)] = None if summands else gradient_norm(optimizer)
        if norm is not None:
            self._tape.add("grad_norm_squared", (norm.double() / scale) ** 2)
        full = self.gate.mode is Mode.FULL
        self._reduced.see(optimizer, full=full, scaled=isinstance(scale, Tensor))
