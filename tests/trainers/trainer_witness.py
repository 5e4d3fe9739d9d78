"""What a run did and left, seen by means that know nothing of numwatch."""

import gc
import random
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef


class Witness:
    """Follows a model's activations and gradients by the memory they lie in, and the losses.

    It goes along with the bare run and the watched one alike. A copy of the model shares it.

    Attributes:
        losses: Of each micro-batch.
        alive: How many activations and gradients of earlier micro-batches lived when each began.
    """

    def __init__(self):
        self.losses, self.alive, self._seen = [], [], []

    def follow(self, model):
        for module in model.modules():
            module.register_forward_hook(self._see_output)

    def begin(self):
        self._seen = [ref for ref in self._seen if not ref.expired()]
        self.alive.append(len(self._seen))

    def end(self, loss):
        self.losses.append(loss.detach().clone())

    def living(self):
        gc.collect()
        return sum(not ref.expired() for ref in self._seen)

    def _see_output(self, _module, _args, output):
        for tensor in output if isinstance(output, tuple) else (output,):
            if type(tensor) is torch.Tensor:
                self._see(tensor)
                if tensor.requires_grad:
                    tensor.register_hook(self._see)

    def _see(self, tensor):
        self._seen.append(StorageWeakRef(tensor.untyped_storage()))

    def __deepcopy__(self, _memo):
        return self


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its model, optimizers and witness; its records where it was watched."""

    model: nn.Module
    optimizers: list[Any]
    witness: Witness
    records: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A run's traces as plain values, which those of another run must equal.

    Attributes:
        numbers: Weights, optimizer state and losses.
        random: Every global random generator's state.
        anatomy: Attributes and hooks of the model, its parameters and optimizers.
        threads: Names of the threads alive.
        alive: See `Witness`.
        living: Activations and gradients that live when all is over.
    """

    numbers: dict[str, Any]
    random: tuple[Any, ...]
    anatomy: dict[str, Any]
    threads: tuple[str, ...]
    alive: list[int]
    living: int


def outcome_of(trained):
    model, optimizers = trained.model, trained.optimizers
    return Outcome(
        numbers={
            "weights": dict(model.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "losses": trained.witness.losses,
        },
        random=(torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
        anatomy={
            "modules": {path: _anatomy(module) for path, module in model.named_modules()},
            "parameters": {
                name: (
                    len(parameter._backward_hooks or ()),
                    len(parameter._post_accumulate_grad_hooks or ()),
                    sorted(vars(parameter)),
                )
                for name, parameter in model.named_parameters()
            },
            "optimizers": [_anatomy(optimizer) for optimizer in optimizers],
        },
        threads=tuple(sorted(thread.name for thread in threading.enumerate())),
        alive=trained.witness.alive,
        living=trained.witness.living(),
    )


def _anatomy(thing):
    """Class, attributes and number of hooks of a module or an optimizer."""
    hooks = {name: len(value) for name, value in vars(thing).items() if name.endswith("_hooks")}
    return type(thing).__name__, sorted(vars(thing)), hooks


def are_same(a, b):
    """Whether two nested values are bit for bit the same, NaNs included."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            and torch.equal(_bits(a), _bits(b))
        )
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(are_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(are_same, a, b))
    return type(a) is type(b) and (a == b or a != a)  # noqa: PLR0124  # NaN


def _bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8)
