"""Small data sets that every net of the table trains on, and its loss."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, BATCH, BATCHES = 16, 16, 4
TIMES, CLASSES = 5, 16


def features(n=BATCHES):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n * BATCH, WIDTH, generator=generator)
    return TensorDataset(x, torch.randint(0, CLASSES, (n * BATCH,), generator=generator))


def sequences(n=BATCHES):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n * BATCH, TIMES, WIDTH, generator=generator)
    return TensorDataset(x, torch.randint(0, CLASSES, (n * BATCH, TIMES), generator=generator))


def tokens(n=BATCHES):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, CLASSES, (n * BATCH, TIMES), generator=generator)
    return TensorDataset(x, x)


def images(n=BATCHES):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n * BATCH, 3, 8, 8, generator=generator)
    y = torch.randint(0, CLASSES, (n * BATCH,), generator=generator)
    return TensorDataset(x.to(memory_format=torch.channels_last), y)


def loader(dataset, *, shuffle=True):
    """Draws from torch's own generator, so that a number too many shows."""
    return DataLoader(dataset, batch_size=BATCH, shuffle=shuffle)


def loss_of(net, batch):
    x, y = batch
    return nn.functional.cross_entropy(net(x).flatten(0, -2), y.flatten())
