"""`EmulatePrecision`: training under a plan that the hardware need not have the formats for."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]

from numwatch.emulate import Emulation, emulate
from numwatch.plan.types import Plan

from ._base import Callback
from ._torchao import builds_itself_later


class EmulatePrecision(Callback):
    """Rounds every operand of every planned Linear through its format and recipe.

    Forward and backward, on any device, under autocast or not; see `numwatch.emulate`. The model
    stays emulated after the fit, so that what is validated is what was trained; `remove` undoes it.
    What delayed scaling and stochastic rounding remember goes into the checkpoint and comes back
    when the fit is resumed.

    Args:
        plan: The plan, or the path of its `plan.yaml`.
        seed: Of stochastic rounding and Hadamard transforms; the training's own random numbers are
            the same with and without it.

    Attributes:
        emulation: What `numwatch.emulate` returned; None before the fit and after `remove`.

    Raises:
        NumwatchError: The plan can not be read, or is for another model.
    """

    def __init__(self, plan: Plan | str, seed: int = 0) -> None:
        self.plan = load(plan)
        self.seed = seed
        self.emulation: Emulation | None = None
        self._restored: dict[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Emulates before strategies wrap the model."""
        if stage == "fit" and not builds_itself_later(pl_module):
            self._emulate(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Emulates a model that was only built in `configure_model`."""
        if builds_itself_later(pl_module):
            self._emulate(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the emulation remembers."""
        if self.emulation is None:
            return self._restored or {}
        return self.emulation.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it over, now or when the model is there."""
        if self.emulation is None:
            self._restored = state_dict
        elif state_dict:
            self.emulation.load_state_dict(state_dict)

    def remove(self) -> None:
        """Makes the model what it was."""
        if self.emulation is not None:
            self.emulation.remove()
        self.emulation = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy is no owner of the model that this one emulates, but goes on where it stands.
        return {**self.__dict__, "emulation": None, "_restored": self.state_dict()}

    def _emulate(self, model: Any) -> None:
        if self.emulation is not None and self.emulation.covers(model):
            return  # a second fit
        self.remove()
        self.emulation = emulate(model, self.plan, seed=self.seed)
        if self._restored:
            self.emulation.load_state_dict(self._restored)
        self._restored = None
        rank_zero_info(
            f"EmulatePrecision: {len(self.emulation.modules)} of "
            f"{len(self.plan.modules)} planned modules emulated ({self.plan.target})"
        )


def load(plan: Plan | str | PathLike[str]) -> Plan:
    """Returns a plan as it is or read from its file."""
    if isinstance(plan, Plan):
        return plan
    from numwatch.plan import load_plan

    return load_plan(Path(plan))
