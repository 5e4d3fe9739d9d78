"""A small run that failed."""

import torch

import numwatch


def run_that_failed(directory):
    """Three steps in FP32 of which the last has a NaN; keeps a capsule."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with numwatch.watch(
        model, optimizer, dir=directory, every_n_steps=1, summary=False, strict=True
    ) as watch:
        for step in range(3):
            x = torch.full((4, 8), float("nan")) if step == 2 else torch.randn(4, 8)

            def loss_of(model, x=x):
                return model(x).square().mean()

            watch.shadow(loss_of, x)
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return directory
