"""A model whose every number is a dyadic rational, so that sums are exact in whatever order."""

import torch
from torch import nn

LR = 2.0**-6
BATCH = 8
STEPS = 3


def exact_model() -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    model = model.double()
    for parameter in model.parameters():
        values = torch.randint(-4, 5, parameter.shape, generator=generator)
        parameter.data.copy_(values.double() / 4)
    return model


def exact_data(steps: int = STEPS, batch: int = BATCH, world: int = 2):
    """Returns inputs and targets [steps, world, batch, 4]."""
    generator = torch.Generator().manual_seed(4)
    shape = (steps, world, batch, 4)
    return tuple(torch.randint(-3, 4, shape, generator=generator).double() for _ in range(2))


def exact_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A mean over the batch (a power of two of samples), linear in the output."""
    return (output * target).sum() / len(output)
