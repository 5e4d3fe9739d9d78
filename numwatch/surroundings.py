"""What a record says of where its run went on: precision, device and versions."""

import platform

import torch
from torch import nn

from numwatch.taps.casts import rounds_operands
from numwatch.taps.device import device_of
from numwatch.taps.float8 import is_float8_linear


def precision_with_rounded(precision: str, model: nn.Module) -> str:
    """The precision, and whether operands are in float8 or emulated in what a plan says."""
    kinds = {
        "float8" if is_float8_linear(module) else "emulated"
        for module in model.modules()
        if rounds_operands(module)
    }
    return " + ".join([precision, *sorted(kinds)])


def device_name(model: nn.Module, ranks: int) -> str:
    """The device, what it is called, and how many ranks there are."""
    device = device_of(model)
    kind = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{kind}" + (f" on {ranks} ranks" if ranks > 1 else "")


def versions() -> dict[str, str]:
    """Those of what computes."""
    return {"python": platform.python_version(), "torch": torch.__version__}
