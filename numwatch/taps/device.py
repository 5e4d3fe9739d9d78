"""The device that a model is on."""

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model's first parameter; the CPU without any."""
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")
