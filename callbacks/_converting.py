"""When in a fit Linears become float8: what `ApplyPlan` and `Float8Training` share."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._base import Callback
from ._torchao import builds_itself_later, require_torchao
from .scaled_mm import OneDNNOff


class ConvertingCallback(Callback):
    """Converts once, when the model is whole; gives torch's switches back after the fit."""

    def __init__(self, emulate: bool | None) -> None:
        require_torchao(type(self).__name__)
        self.emulate = emulate
        self.converted: tuple[str, ...] = ()
        self.emulated: bool | None = None
        self._onednn = OneDNNOff()

    def _convert(self, trainer: Any, model: nn.Module) -> None:
        """Turns the Linears, sets `converted` and `emulated`."""
        raise NotImplementedError

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Converts before strategies wrap the model, FSDP's hooks would stay on the old modules."""
        if stage == "fit" and not builds_itself_later(pl_module):
            self._convert(trainer, pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Converts a model that was only built in `configure_model`."""
        if builds_itself_later(pl_module):
            self._convert(trainer, pl_module)
        if self.emulated is False:
            self._onednn.enter(trainer.strategy.root_device)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Leaves torch's switches as they were."""
        self._onednn.leave()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Likewise."""
        self._onednn.leave()
