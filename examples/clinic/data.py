"""Batches for the clinic: made from torch's generator, or text that ships with Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from numwatch.demo.text import Windows, corpus

SIDE = 12
CLASSES = 10
FEATURES = 32


def shuffled(*tensors: Tensor, batch: int = 64) -> DataLoader:
    """Returns batches of tensors that share their first size, in a new order each epoch."""
    return DataLoader(TensorDataset(*tensors), batch, shuffle=True, drop_last=True)


def sequence(make: Callable[[int], Any], count: int) -> DataLoader:
    """Returns the batches `make(0)`, `make(1)`, …, in this order."""
    return DataLoader([make(index) for index in range(count)], batch_size=None)


def images(count: int = 2048, noise: float = 0.7) -> tuple[Tensor, Tensor]:
    """Returns noisy pictures [count, 1, SIDE, SIDE] of ten shapes, and which shape it is."""
    coarse = torch.randn(CLASSES, 1, SIDE // 3, SIDE // 3)
    shapes = torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear", align_corners=False)
    labels = torch.randint(CLASSES, (count,))
    return shapes[labels] + noise * torch.randn(count, 1, SIDE, SIDE), labels


def vectors(count: int = 2048) -> tuple[Tensor, Tensor]:
    """Returns normal vectors [count, FEATURES] and the class a linear teacher gives them."""
    x = torch.randn(count, FEATURES)
    return x, (x @ torch.randn(FEATURES, CLASSES)).argmax(dim=1)


def regression(count: int = 2048, outputs: int = 8) -> tuple[Tensor, Tensor]:
    """Returns normal vectors [count, FEATURES] and waves [count, outputs] over them."""
    x = torch.randn(count, FEATURES)
    return x, torch.sin(x @ torch.randn(FEATURES, outputs) / FEATURES**0.5)


def text(context: int = 32, batch: int = 8) -> DataLoader:
    """Returns windows of Python's help topics and their successor characters."""
    return DataLoader(Windows(corpus(), context), batch, shuffle=True, drop_last=True)


def tokens(count: int = 1024, time: int = 12, width: int = 32) -> tuple[Tensor, Tensor]:
    """Returns vectors [count, time, width] and the class of their mean under a linear teacher."""
    x = torch.randn(count, time, width)
    return x, (x.mean(dim=1) @ torch.randn(width, CLASSES)).argmax(dim=1)
