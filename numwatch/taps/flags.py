"""The switches that let a GEMM accumulate in less than FP32, as they stand."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from numwatch.taps.float8 import is_float8_linear

_GEMMS = ("output", "grad_input", "grad_weight")


def accumulation_flags(model: nn.Module) -> dict[str, Any]:
    """Returns each switch by name; those this torch does not have are left out.

    Beside torch's own it has, where the model has torchao's `Float8Linear`s, under
    `float8_use_fast_accum` how many of them accumulate fast in each of their GEMMs.
    """
    switches: dict[str, Callable[[], Any]] = {
        f"{place}.{name}": partial(getattr, backend, name)
        for place, backend, names in _BACKENDS
        for name in names
    }
    switches["float32_matmul_precision"] = torch.get_float32_matmul_precision
    flags = {}
    for name, read in switches.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are to go
            try:
                flags[name] = read()
            except (AttributeError, RuntimeError, AssertionError):
                continue  # not in this torch, or set by a newer name
    linears = [module for module in model.modules() if is_float8_linear(module)]
    if linears:
        flags["float8_use_fast_accum"] = {
            gemm: sum(_accumulates_fast(module, gemm) for module in linears) for gemm in _GEMMS
        }
    return flags


_REDUCED = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
    "allow_tf32",
)
_BACKENDS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("cuda.matmul", torch.backends.cuda.matmul, _REDUCED),
    ("cudnn", torch.backends.cudnn, ("allow_tf32",)),
)


def _accumulates_fast(module: nn.Module, gemm: str) -> bool:
    config: Any = getattr(module, "config", None)
    return bool(getattr(getattr(config, f"gemm_config_{gemm}", None), "use_fast_accum", False))
