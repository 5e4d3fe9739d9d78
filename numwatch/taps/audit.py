"""The audit: every operation of one early step, noted by a dispatch mode that changes none."""

import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _pop_mode,
    _push_mode,
)
from torch.utils.hooks import RemovableHandle

from numwatch.taps.gate import Gate, Mode
from numwatch.taps.hooks import Hook, in_backward, takes_hooks
from numwatch.taps.operations import Notes, SentOperations
from numwatch.taps.selection import clean_path


class Audit:
    """Watches the operations of one step.

    What is below a user's own dispatch modes is seen: it stays underneath them.

    Attributes:
        fault: Why there can be no audit, None where there can.
    """

    def __init__(self, model: nn.Module, gate: Gate, *, due: bool = False) -> None:
        self._model = model
        self._due = due
        self._gate = gate
        self._mode: _Mode | None = None
        self._notes: Notes | None = None
        self._handles: list[RemovableHandle] = []
        self.fault = _why_not(model)

    def begin(self) -> None:
        """Begins a step, with what the gate says of it: the first full one is watched, if due.

        One that is yet to make lazy parameters is not: torch can't do that under a dispatch mode.
        """
        if self._due and self._gate.mode is Mode.FULL and not _is_unmade(self._model):
            self._due = False
            self.start()

    def start(self) -> None:
        """Begins to watch this thread's operations, and those of the backwards it runs."""
        self.fault = _why_not(self._model)
        if self.fault is not None:
            return
        self._notes = Notes()
        self._mode = _Mode(self._notes, self._gate)
        for path, module in self._model.named_modules():
            if takes_hooks(module):
                at = _At(self._notes, clean_path(path))
                self._handles += [
                    module.register_forward_pre_hook(_Enter(at), prepend=True),
                    module.register_forward_hook(_Leave(at), always_call=True),
                ]
        with _disable_current_modes():  # those that are on come back on top of it
            _push_mode(self._mode)

    def stop(self) -> None:
        """Ends it; what was noted can still be sent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.on = False
            self._gate.when_free(mode.take_off)

    def send(self) -> SentOperations | None:
        """Sends what was noted, and forgets it; None where there was no audit."""
        notes, self._notes = self._notes, None
        return None if notes is None else notes.send()


_FAKE = "torch._subclasses.fake_tensor"


class _Mode(TorchDispatchMode):
    """Tells the notes of each operation, which it runs as it is."""

    supports_higher_order_operators = True

    def __init__(self, notes: Notes, gate: Gate) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on = True
        self._notes = notes
        self._gate = gate
        self._thread = threading.get_ident()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(kind.__module__ == _FAKE for kind in types):
            return func(*args, **kwargs)  # a DTensor asks what an operation would return
        if self.on and any(kind is not Tensor and kind is not nn.Parameter for kind in types):
            return NotImplemented  # a subclass takes itself apart first: its parts come here
        result = func(*args, **kwargs)
        if self.on:
            with self._gate.watching():
                self._notes.note(func, args, kwargs, result)
        return result

    def take_off(self) -> bool:
        """Takes itself off the stack from wherever it is there; returns whether it could."""
        if threading.get_ident() != self._thread:
            return False  # autograd's threads have copies of the stack
        above = []
        found = False
        while not found and torch._C._len_torch_dispatch_stack():  # noqa: SLF001
            top = _pop_mode()
            found = top is self
            if not found:
                above.append(top)
        for other in reversed(above):
            _push_mode(other)
        return found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch would import its compiler at the first operation

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class _At:
    notes: Notes
    path: str


class _Enter(Hook):
    """A module begins."""

    def __init__(self, at: _At) -> None:
        self._at = at

    def __call__(self, *_: Any) -> None:
        if not is_compiling():
            self._at.notes.stack.append((self._at.path, in_backward()))


class _Leave(Hook):
    """It ends."""

    def __init__(self, at: _At) -> None:
        self._at = at

    def __call__(self, *_: Any) -> None:
        if not is_compiling() and self._at.notes.stack:
            self._at.notes.stack.pop()


def _is_unmade(model: nn.Module) -> bool:
    return any(map(is_lazy, chain(model.parameters(), model.buffers())))


def _why_not(model: nn.Module) -> str | None:
    for module in model.modules():
        wrapped = any(cls.__name__ == "OptimizedModule" for cls in type(module).__mro__)
        if wrapped or getattr(module, "_compiled_call_impl", None) is not None:
            return "the model is compiled, and would run uncompiled while its operations are seen"
    # Of functions that are compiled nothing on the model tells.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    backends: Mapping[int, Any] = getattr(dynamo, "cached_backends", {})
    if any(backend is not None for backend in backends.values()):
        return "this process has compiled code, which would run uncompiled while it is seen"
    return None
