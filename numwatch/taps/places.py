"""Where in a model and in the user's code an operation runs, and where a node of backward began."""

import linecache
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

from numwatch.taps.hooks import takes_hooks
from numwatch.taps.selection import clean_path

_LIBRARIES = frozenset(
    {
        "contextlib",
        "functools",
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
        "torch",
        "torchao",
        "torchmetrics",
    }
)
_OWN = "numwatch"
_EXAMPLES = "numwatch.demo"


@dataclass(frozen=True)
class Place:
    """A module and a line of code.

    Attributes:
        module: Path of the innermost module at work, "" for the root or none.
        inside: Whether any module was at work.
        is_loss: Whether that module is one of torch's losses.
        code: The user's function, None where no frame is the user's.
        line: The line in its file.
    """

    module: str
    inside: bool
    is_loss: bool
    code: CodeType | None
    line: int

    @property
    def source(self) -> str:
        """`model.py:42 in forward: y = x.exp()`, or nothing where no line is known."""
        if self.code is None:
            return ""
        text = linecache.getline(self.code.co_filename, self.line).strip()
        name = Path(self.code.co_filename).name
        return f"{name}:{self.line} in {self.code.co_name}" + (f": {text}" if text else "")


class Places:
    """Follows a forward through the modules of a model, a copy that dies with its hooks.

    Attributes:
        calls: How many modules, torch's losses aside, have begun to work so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        self._stack: list[tuple[str, bool]] = []
        self._of_node: dict[int, Place] = {}
        self._bottom = 0
        for path, module in model.named_modules():
            if not takes_hooks(module):
                continue
            follower = _Follower(self, clean_path(path), is_loss=_is_loss(module))
            module.register_forward_pre_hook(follower.enter, prepend=True)
            module.register_forward_hook(follower.leave, always_call=True)

    def here(self) -> Place:
        """Returns the place of the operation under way; called from a dispatch mode."""
        module, is_loss = self._stack[-1] if self._stack else ("", False)
        code, line = _user_frame()
        return Place(module, bool(self._stack), is_loss, code, line)

    def note(self) -> None:
        """Notes the place of the node that autograd has made for the operation under way."""
        # Autograd makes it before the operation is dispatched.
        node = torch._C._autograd._get_sequence_nr() - 1  # noqa: SLF001  # no public equivalent
        if node not in self._of_node:
            self._of_node[node] = self.here()

    def of_node(self) -> Place | None:
        """Returns where the node of backward that runs now was made, None where not known."""
        node = torch._C._current_autograd_node()  # noqa: SLF001  # no public equivalent
        return None if node is None else self._of_node.get(node._sequence_nr())  # noqa: SLF001

    def push(self, path: str, *, is_loss: bool) -> None:
        """A module begins."""
        self._stack.append((path, is_loss))
        self.calls += not is_loss

    def pop(self) -> None:
        """It ends."""
        if self._stack:
            self._stack.pop()


class _Follower:
    def __init__(self, places: Places, path: str, *, is_loss: bool) -> None:
        self._places, self._path, self._is_loss = places, path, is_loss

    def enter(self, *_: Any) -> None:
        self._places.push(self._path, is_loss=self._is_loss)

    def leave(self, *_: Any) -> None:
        self._places.pop()


def _is_loss(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.loss._Loss)  # noqa: SLF001  # the losses' common base


def _user_frame() -> tuple[CodeType | None, int]:
    """Returns the innermost frame of the user's between an operation and the search for it."""
    frame: Any = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "numwatch.forensics":
            return None, 0
        if _is_users(name):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back
    return None, 0


def _is_users(name: str) -> bool:
    package = name.partition(".")[0]
    if package == _OWN:
        return name.startswith(_EXAMPLES)
    return package not in _LIBRARIES
