"""The kernels that a run will need, compiled before its first step: that takes a while once."""

from collections.abc import Callable

import torch
from torch import nn

from numwatch.settings import Settings
from numwatch.stats import warm_up
from numwatch.taps.device import device_of

_LOW = {"bf16": torch.bfloat16, "16": torch.float16}
_FLOATS = (torch.float32, *_LOW.values())


def compile_for(
    model: nn.Module, precision: str, settings: Settings, tell: Callable[[], None]
) -> None:
    """Compiles what a run needs and no earlier one in this environment has compiled.

    Args:
        model: The model.
        precision: As Lightning names it.
        settings: What the user chose.
        tell: Called once where something has to be compiled.
    """
    warm_up(
        _FLOATS,
        device_of(model),
        blocks=operand_dtypes(model, precision) if settings.block_every_n_steps else (),
        updates=settings.update_samples != 0,
        tell=tell,
    )


def operand_dtypes(model: nn.Module, precision: str) -> tuple[torch.dtype, ...]:
    """The dtypes, of up to 32 bits, to expect of a run's GEMM operands.

    With a precision that Lightning does not know, the run chooses its autocast itself.
    """
    bits, _, kind = precision.partition("-")
    expected = {torch.float32, *(parameter.dtype for parameter in model.parameters())}
    if kind not in {"mixed", "true"}:
        expected.update(_LOW.values())
    elif bits in _LOW:
        expected.add(_LOW[bits])
    return tuple(dtype for dtype in _FLOATS if dtype in expected)
