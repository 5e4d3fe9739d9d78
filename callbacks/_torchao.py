"""Turning Linears into torchao's `Float8Linear`: what both callbacks that do it share."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from numwatch.errors import NumwatchError
from numwatch.taps.float8 import is_float8_linear

_COMPUTE_DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "64": torch.float64}


def convert(model: nn.Module, modules: Collection[nn.Module], config: Any) -> None:
    """Turns some of a model's Linears, in place, by a `Float8LinearConfig`."""
    from torchao.float8 import convert_to_float8_training

    ids = {id(module) for module in modules}
    before = {id(module) for module in model.modules() if is_float8_linear(module)}
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, _: id(module) in ids
    )
    for module in model.modules():
        if is_float8_linear(module) and id(module) not in before:
            module.register_forward_pre_hook(_autocast_input)


def scaled_mm_fault(config: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why the device can not run a config's GEMMs in `torch._scaled_mm`, None if it can.

    Found by running a small layer forward and backward, with activations of `dtype`.
    """
    from torchao.float8 import convert_to_float8_training

    linear = nn.Linear(32, 32, bias=False, device=device, dtype=dtype)
    try:
        probe = convert_to_float8_training(
            linear, config=dataclasses.replace(config, emulate=False)
        )
        x = torch.ones(16, 32, device=device, dtype=dtype, requires_grad=True)
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            probe(x).sum().backward()
    except (RuntimeError, ValueError, NotImplementedError) as error:  # each torch has its own
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def compute_dtype(precision: str) -> torch.dtype:
    """Returns what a Trainer of that precision computes in."""
    return _COMPUTE_DTYPES.get(precision.partition("-")[0], torch.float32)


def require_torchao(who: str) -> None:
    """Refuses to go on without torchao (`NumwatchError`)."""
    try:
        missing = importlib.util.find_spec("torchao") is None
    except ValueError:  # an entry of sys.modules without a spec
        missing = True
    if missing:
        raise NumwatchError(f"{who} needs torchao; type: pip install 'torchao>=0.12'")


def builds_itself_later(pl_module: Any) -> bool:
    """Whether a LightningModule makes its layers in `configure_model`, after `setup`."""
    owner = type(pl_module).configure_model.__module__.split(".")[0]
    return owner not in ("lightning", "pytorch_lightning")


def _autocast_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Casts a Linear's input as its device's autocast would.

    torchao asks CUDA's autocast alone. Under another device's the input would stay FP32 while
    its gradient comes as BF16, and `rowwise_with_gw_hp` can not multiply the two.
    """
    if not args or not torch.is_autocast_enabled(args[0].device.type):
        return None
    return args[0].to(torch.get_autocast_dtype(args[0].device.type)), *args[1:]
