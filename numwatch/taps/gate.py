"""The one switch all hooks look at, the clock they are charged to, and the guard they fail into."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import IntEnum
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

_set_eval_frame = torch._C._dynamo.eval_frame.set_eval_frame  # noqa: SLF001  # as its own `disable`


class Mode(IntEnum):
    """What the step under way records of a tensor."""

    OFF = 0
    AMAX = 1
    FULL = 2


class Gate:
    """State shared by every hook of one watch.

    Attributes:
        mode: What the step under way records; the only thing a hook reads on other steps.
        broken: Whether an internal error has ended the watching.
        strict: Whether such an error is raised instead.
        on_switch: Called with each new mode: captured graphs ask no host.
        on_break: Called when the watching ends by an error, but not while `hooks_stay`.
        model: The watched model, while its hooks are in place.
        step_handles: Hooks that end with the step, because their tensor outlives it.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.model: nn.Module | None = None
        self.step_handles: list[RemovableHandle] = []
        self.mode = Mode.OFF
        self.broken = False
        self.strict = strict
        self.on_switch: Callable[[Mode], None] | None = None
        self.on_break: Callable[[], None] | None = None
        self._spent_ns = 0
        self._depth = 0
        self._held = False
        self._waiting: list[Callable[[], bool]] = []

    def switch(self, mode: Mode) -> None:
        """Says what is recorded from now on."""
        if mode is not self.mode and self.on_switch is not None:
            self.on_switch(mode)
        self.mode = mode

    @property
    def open(self) -> bool:
        """Whether a forward that runs now is recorded; validation in between is not."""
        return bool(self.mode) and (torch.is_grad_enabled() or self.in_training)

    @property
    def in_training(self) -> bool:
        """Whether the model, as far as is known, is in training mode."""
        return self.model is None or self.model.training

    def watching(self) -> "_Watching":
        """Charges the enclosed work to numwatch, and keeps its errors away from the run."""
        return _Watching(self)

    @contextmanager
    def hooks_stay(self) -> Iterator[None]:
        """Puts `on_break` off: torch goes through an optimizer's hooks while they are called."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def when_free(self, task: Callable[[], bool]) -> None:
        """Does what can't be done inside `watching`, which puts dispatch modes aside.

        Args:
            task: Returns whether it could be done; if not it is tried again later.
        """
        self._waiting.append(task)
        if not self._depth:
            self.settle()

    def settle(self) -> None:
        """Tries again what had to wait."""
        if self._waiting:
            self._waiting = [task for task in self._waiting if not task()]

    def take_seconds(self) -> float:
        """Returns the host seconds charged since the last call."""
        spent, self._spent_ns = self._spent_ns, 0
        return spent * 1e-9

    def _end(self, start: int, error: BaseException | None) -> bool:
        """Ends work of numwatch's own that began at a time by `perf_counter_ns`.

        Returns:
            Whether the error that ended it has been dealt with.
        """
        caught = False
        try:
            if isinstance(error, Exception) and not self.strict:
                caught = True
                self._break(error)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._spent_ns += time.perf_counter_ns() - start
                if self._waiting:
                    self.settle()
        return caught

    def _break(self, error: Exception) -> None:
        self.mode = Mode.OFF
        if self.broken:
            return
        self.broken = True
        if self.on_switch is not None:
            with suppress(RuntimeError):  # of a device that is broken too
                self.on_switch(Mode.OFF)
        if self.on_break is not None and not self._held:
            self.on_break()  # before the warning, which `-W error` raises
        text = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"numwatch stopped watching, the training goes on ({text}). What was flushed is kept; "
            "strict=True raises such errors instead.",
            RuntimeWarning,
            stacklevel=4,
        )


class _Watching:
    """`Gate.watching`: a class, as a generator would take longer than many a pass.

    Where compiled code has called a hook, Dynamo would go on and compile numwatch: it may not.
    """

    __slots__ = ("_dynamo", "_gate", "_modes", "_start")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._modes: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        self._start = time.perf_counter_ns()
        self._gate._depth += 1  # noqa: SLF001  # the gate's own
        self._dynamo = _set_eval_frame(None)
        # Selective checkpointing, for one, counts the operations it sees: ours are not its.
        if torch._C._len_torch_dispatch_stack():  # noqa: SLF001
            self._modes = _disable_current_modes()
            self._modes.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if self._modes is not None:
            self._modes.__exit__(kind, error, trace)
        try:
            return self._gate._end(self._start, error)  # noqa: SLF001
        finally:
            if self._dynamo is not None:
                _set_eval_frame(self._dynamo)
