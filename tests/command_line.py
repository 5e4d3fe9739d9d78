"""What the tests of commands share: a run to read, and how a refusal looks."""

import torch

import numwatch


def bf16_run(directory):
    """Trains a small net under BF16 autocast for six steps; returns the run's directory."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(16, 32),
        torch.nn.Linear(32, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 32),
    )
    optimizer = torch.optim.AdamW(model.parameters())
    with numwatch.watch(model, optimizer, dir=directory, summary=False, every_n_steps=2) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.arange(64) % 16).float().square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return directory


def refused(result, *texts):
    """Holds against what a refused command leaves: exit code 2 and one line."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("numwatch: ")
    assert err.count("\n") == 1
    for text in texts:
        assert text in err
