"""A second run of a step: copies of what it runs on, in FP32 or not, and what forgets it."""

import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from numwatch.errors import NumwatchError
from numwatch.stats import is_watched_dtype
from numwatch.taps.casts import rounds_operands, turn_plain

T = TypeVar("T")
StandIns = Iterable[tuple[object, object]]
"""Pairs of an object and what a copy holds in its place."""


def is_low(dtype: torch.dtype) -> bool:
    """Whether a dtype is a float of fewer bits than FP32."""
    return is_watched_dtype(dtype) and dtype.itemsize < torch.float32.itemsize


def copy_in_fp32(value: T, stand_ins: StandIns = ()) -> T:
    """Returns a deep copy whose tensors are FP32 where they were lower.

    Integers and FP64 stay what they are. A tensor inside an autograd graph, which torch refuses to
    copy, becomes a leaf. Of modules the copy's float8 Linears are plain ones on the same weights.

    Args:
        value: Anything that `copy.deepcopy` takes: a module, a batch.
        stand_ins: What the copy holds instead of certain objects.

    Raises:
        NumwatchError: A part of a module copies itself as itself.
    """
    copied = _copied(value, stand_ins, _widened)
    if isinstance(copied, nn.Module):
        convert: Callable[[Callable[[Tensor], Tensor]], object] = copied._apply  # noqa: SLF001
        convert(_widened)  # `float()` would take FP64 down
        for module in copied.modules():
            if rounds_operands(module):
                turn_plain(module)
    return copied


def copy_exactly(value: T, stand_ins: StandIns = ()) -> T:
    """Returns a deep copy likewise, in which tensors and modules are bit for bit what they were."""
    return _copied(value, stand_ins, _same)


def empty(model: nn.Module) -> None:
    """Frees a copy's parameters and buffers now, not when Python finds its reference cycles."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.grad = None
        if _is_plain(tensor):
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Surroundings in which a copy of `model` may train a step and leave no trace.

    Those of `forgotten`; besides, new tensors are FP32, and products are not rounded to TF32 or
    BF16.
    """
    with ExitStack() as stack:
        stack.enter_context(forgotten(model))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(_whole_products())
        yield


@contextmanager
def forgotten(model: nn.Module) -> Iterator[None]:
    """Surroundings in which a copy of `model` may train a step as the model itself would.

    Random numbers come as they would come to the model, and are drawn again by it: torch's global
    generators of the CPU and the model's devices, numpy's and Python's. Autocast is off, gradients
    are on, and compiled modules run eagerly. A call of one of the model's own modules raises
    `NumwatchError`.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    kinds = {"cpu"} | {device.type for device in devices}
    with ExitStack() as stack:
        for kind in kinds:
            indices = {device.index for device in devices if device.type == kind != "cpu"}
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002  # users' own
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_untouched(model))
        yield


def widen_arguments(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook (with keywords) of a copy: an input that the run made low becomes FP32."""
    widened: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
        Tensor, _widened, (args, kwargs)
    )
    return widened


def _copied(value: T, stand_ins: StandIns, convert: Callable[[Tensor], Tensor]) -> T:
    memo = {id(real): stand_in for real, stand_in in stand_ins}
    with _Copies(convert):
        copied = copy.deepcopy(value, memo)
    if isinstance(copied, nn.Module) and isinstance(value, nn.Module):
        _require_own_parts(copied, value)
    return copied


class _Copies(TorchFunctionMode):
    """Deep copies of tensors taken within it are converted, and leaves where they were none."""

    def __init__(self, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self,
        func: Any,
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) in memo:
            return memo[id(tensor)]
        copied = tensor.__deepcopy__(memo) if tensor.is_leaf else tensor.detach().clone()
        converted = self._convert(copied)
        if converted is not copied:
            copied = converted.detach().requires_grad_(tensor.requires_grad)
        memo[id(tensor)] = copied
        return copied


def _require_own_parts(copied: nn.Module, model: nn.Module) -> None:
    """Raises where a copy shares modules or memory with what it is a copy of."""
    modules = {id(module) for module in model.modules()}
    addresses = set().union(*(_addresses(module) for module in model.modules()))
    for path, module in copied.named_modules():
        if id(module) in modules or not addresses.isdisjoint(_addresses(module)):
            raise NumwatchError(
                f"{path or type(model).__name__} has a __deepcopy__ of its own, which shares its "
                "memory with the copy"
            )


def _addresses(module: nn.Module) -> set[int]:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return {t.untyped_storage().data_ptr() for t in own if _is_plain(t)} - {0}


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's memory is its own and already there."""
    return not is_lazy(tensor) and type(tensor.data) is Tensor


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if is_low(tensor.dtype) else tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Refuses calls of the model's modules: a function stored on a copy may still hold them."""
    own = {id(module) for module in model.modules()}

    def refuse(module: nn.Module, _args: object) -> None:
        if id(module) in own:
            raise NumwatchError(
                f"a copy of the model calls a {type(module).__name__} of the model itself, kept by "
                "a function in one of its attributes or by the step's own code"
            )

    handle = nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _whole_products() -> Iterator[None]:
    """Within it, FP32 products take FP32 operands, whatever the run allows for speed."""
    backends: Any = torch.backends
    operators: list[Any] = []
    if hasattr(backends.cudnn, "conv"):  # one switch an operator beside the old ones: torch 2.9
        operators = [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv]
        operators += [backends.mkldnn.rnn, backends.cudnn.conv, backends.cudnn.rnn]
    each = [operator.fp32_precision for operator in operators]
    products, convolutions = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    try:
        # Both kinds of switches: torch refuses to read the old ones where they contradict the new.
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
        for operator in operators:
            operator.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        backends.cudnn.allow_tf32 = convolutions
        for operator, precision in zip(operators, each, strict=True):
            operator.fp32_precision = precision
