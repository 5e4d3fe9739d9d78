"""Hook objects that a model may carry without taking numwatch along when copied or pickled."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def inert(*_args: object, **_kwargs: object) -> None:
    """Does nothing: what becomes of a hook in a copy of the model (weight averaging, pickling)."""


class Hook:
    """A callable that turns into `inert` when it is copied or pickled."""

    # torch warns of every other hook it finds on a tensor it serialises.
    __torch_unserializable__ = True

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        return inert

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (_get_inert, ())


def _get_inert() -> Any:
    return inert


def in_backward() -> bool:
    """Whether autograd is running on this thread: a forward seen then is a recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)  # noqa: SLF001  # no public equivalent


def is_transformed(tensor: Tensor) -> bool:
    """Whether a `torch.func` transform wraps the tensor, so that it has no memory to read."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001
    return wrapped


def autocast_on(device: str) -> str:
    """Returns the dtype of the autocast in force for a kind of device, or "" for none."""
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yields each distinct tensor in nested tuples, lists and mappings, in order."""
    return _distinct(value, set())


def _distinct(value: object, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen.add(id(value))
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _distinct(item, seen)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _distinct(item, seen)
