"""Hook objects that a model may carry without taking numwatch along when copied or pickled."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Removable(Protocol):
    """Something that was put on the model and can be taken off again."""

    def remove(self) -> None:
        """Takes it off."""


def remove_all(handles: list[RemovableHandle] | list[Removable]) -> None:
    """Takes all off, and leaves the list empty."""
    for handle in handles:
        handle.remove()
    handles.clear()


def takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be put on a module: not where `torch.jit` has made it."""
    return not isinstance(module, torch.jit.ScriptModule)


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


def hook_gradient(tensor: Tensor, hook: Hook) -> RemovableHandle | None:
    """Registers a hook on a tensor's gradient; one that is no leaf takes it along when it dies.

    Does as `register_hook`, at a third of its price where nobody can want the handle.

    Returns:
        What takes it off; None where the tensor is no leaf.
    """
    node: Any = tensor.grad_fn
    hooked: Any = tensor
    if type(tensor) is not Tensor or node is None or hooked._backward_hooks is not None:  # noqa: SLF001
        handle = tensor.register_hook(hook)
        return handle if tensor.is_leaf else None
    hooks: OrderedDict[Any, Hook] = OrderedDict()
    hooked._backward_hooks = hooks  # noqa: SLF001  # as `register_hook` does, here and below
    node._register_hook_dict(tensor)  # noqa: SLF001
    hooks[hook] = hook  # no number, since a handle's may be the same
    return None


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
