"""The autocast that a plain loop runs its model under, as seen from the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from numwatch.taps.hooks import Hook, takes_hooks


class Autocast:
    """Sees under which autocast a model's forward was called last while it trained."""

    def __init__(self, model: nn.Module) -> None:
        parameter = next(model.parameters(), None)
        self._device = "cpu" if parameter is None else parameter.device.type
        self._model = model
        self._dtype: torch.dtype | None = None
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Hooks the model."""
        if takes_hooks(self._model):
            self._handle = self._model.register_forward_pre_hook(_BeforeForward(self))

    def detach(self) -> None:
        """Takes the hook off."""
        if self._handle is not None:
            self._handle.remove()

    def look(self) -> None:
        """Takes note of the autocast in force."""
        if torch.is_grad_enabled():
            enabled = torch.is_autocast_enabled(self._device)
            self._dtype = torch.get_autocast_dtype(self._device) if enabled else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same autocast once more."""
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            yield


class _BeforeForward(Hook):
    def __init__(self, autocast: Autocast) -> None:
        self._autocast = autocast

    def __call__(self, *_: Any) -> None:
        self._autocast.look()
