"""A small training run that something befalls, beside the same run without numwatch."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

import numwatch

STEPS = 12
EPOCH = 4
"""Steps after each of which the record is flushed."""


@dataclass
class Trained:
    """What came of a run.

    Attributes:
        numbers: Weights, optimizer state, losses and the generator's last draw, all of them.
        warned: The texts of the warnings.
        error: What ended it.
        hooks: How many hooks the model was left with.
    """

    numbers: list[torch.Tensor] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    error: BaseException | None = None
    hooks: int = 0


def train(directory=None, *, before=None, make=None, steps=STEPS, hook=None, **options):
    """Trains a small net with dropout, watched where there is a directory.

    Args:
        directory: Of the run.
        before: Called with each step's number before the step.
        make: Makes the net.
        steps: How many steps.
        hook: A forward hook of the user's on the second layer.
        options: Of `numwatch.watch`.
    """
    torch.manual_seed(0)
    model = (make or net)()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if hook is not None:
        model[-1].register_forward_hook(hook)
    own = hooks_of(model)
    found = Trained()
    losses = []
    watching = nullcontext()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if directory is not None:
                options = {"every_n_steps": 1, "summary": False, **options}
                watching = numwatch.watch(model, optimizer, dir=directory, **options)
            with watching as watch:
                for step in range(steps):
                    if before is not None:
                        before(step)
                    optimizer.zero_grad()
                    loss = model(torch.randn(16, 8)).square().mean()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach())
                    if watch is not None:
                        watch.step(loss=loss)
                        if step % EPOCH == EPOCH - 1:
                            watch.end_epoch()
        except BaseException as error:  # noqa: BLE001  # a test asks for it
            found.error = error
    state = [value for each in optimizer.state.values() for value in each.values()]
    found.numbers = [*model.parameters(), *state, *losses, torch.rand(4)]
    found.numbers = [value.detach().clone() for value in found.numbers]
    found.warned = [str(each.message) for each in caught if "numwatch" in str(each.message)]
    found.hooks = hooks_of(model) - own
    return found


def net():
    """Two layers and a dropout, which draws random numbers."""
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 2))


def hooks_of(model):
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def assert_same(one, other):
    """Two runs came out bit for bit alike."""
    assert len(one.numbers) == len(other.numbers)
    for a, b in zip(one.numbers, other.numbers, strict=True):
        assert torch.equal(a, b)


def assert_harmless(watched, bare, warning):
    """The run went on as it would have, and one warning told why it is not watched."""
    assert watched.error is None
    assert_same(watched, bare)
    assert watched.hooks == 0
    (told,) = watched.warned
    assert warning in told
    assert "the training goes on" in told


def steps_of(directory):
    """The steps of a record that can be read, and what can't be."""
    run = numwatch.open_run(directory)
    return run.steps()["step"].to_pylist(), run.problems
