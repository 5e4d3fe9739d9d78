"""What an emulated module remembers: the scales of rules that look back, and random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from numwatch.emulate.casts import amax_of
from numwatch.errors import NumwatchError
from numwatch.formats import Format
from numwatch.recipes.scaling import State, TensorScaling

_CALLS_KEPT = 16
"""Forward calls of a module that may lie between one and its recomputation in backward."""


class ScaleKeeper:
    """The scale of one operand, call by call; all of it stays on the operand's device.

    A call of a training module advances the rule once, as in Transformer Engine; each micro-batch
    is a call. A forward that activation checkpointing runs again takes the scale of the first time,
    found by its amax among the last 16 calls, and advances nothing.
    """

    def __init__(self, rule: TensorScaling, fmt: Format) -> None:
        self._rule, self._format = rule, fmt
        self._state: State | None = None
        self._calls: Tensor | None = None
        self._last: Tensor | None = None

    def scale_for(self, matrix: Tensor, *, advance: bool, again: bool = False) -> Tensor:
        """Returns the scale in force for an operand, FP32 [].

        Args:
            matrix: The operand.
            advance: Whether the call counts.
            again: Whether it is a recomputation of one that counted.
        """
        amax = amax_of(matrix)
        scale, following = self._rule.step(self._state_on(amax), amax, self._format)
        if not following:  # a rule that looks at this tensor alone
            return scale
        if again and self._calls is not None:
            same = (self._calls[:, 0] == amax).to(torch.int8)
            scale = self._calls[:, 1].gather(0, same.argmax()[None])[0]
        elif advance:
            call = torch.stack([amax, scale])[None]
            earlier = call.new_zeros(0, 2) if self._calls is None else self._calls
            self._calls = torch.cat([call, earlier.to(call.device)[: _CALLS_KEPT - 1]])
            self._state = following
        self._last = scale
        return scale

    def scale_of(self, matrix: Tensor, *, past: bool) -> Tensor:
        """Returns the scale of the last call, or the one a call with `matrix` would take now."""
        if past and self._last is not None:
            return self._last
        amax = amax_of(matrix)
        return self._rule.step(self._state_on(amax), amax, self._format)[0]

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what the rule remembers; nothing before the first call."""
        return dict(self._state or {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what another keeper's `state_dict` returned.

        Raises:
            NumwatchError: It is of another rule or another history.
        """
        expected = self._rule.start(torch.zeros(()))
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if state and found != shapes:
            raise NumwatchError(
                f"the saved scales are of another recipe: {self._rule.name} remembers {shapes}; "
                f"got {found}"
            )
        self._state = {name: tensor.clone() for name, tensor in state.items()} or None
        self._calls = self._last = None

    def _state_on(self, amax: Tensor) -> State:
        # Never kept from here: validation may run first, and in inference mode.
        if self._state is None:
            return self._rule.start(amax)
        return {name: tensor.to(amax.device) for name, tensor in self._state.items()}


class Draws:
    """Random numbers of an emulation's own, a generator a device: the training's are left alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[str, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        """Returns the generator of a device."""
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[key]

    def ahead(self, device: torch.device) -> torch.Generator:
        """Returns a generator that yields what `on` is about to, which it leaves to be drawn."""
        ahead: torch.Generator = self.on(device).clone_state()
        return ahead

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the generators' states by device."""
        return {key: generator.get_state() for key, generator in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over states; those of devices that are not here any more are left out."""
        for key, value in state.items():
            device = torch.device(key)
            if device.type == "cpu" or torch.get_device_module(device.type).is_available():
                self.on(device).set_state(value.cpu())

    def __getstate__(self) -> dict[str, Any]:
        # Generators can not be copied.
        return {"seed": self._seed, "states": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._seed, self._generators = state["seed"], {}
        self.load_state_dict(state["states"])
