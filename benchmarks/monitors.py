"""Ways of watching a training: numwatch at some cadences, and the monitors people use today."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn, optim
from torch.amp import GradScaler

import numwatch
from numwatch.schedule import Schedule


class Trained(Protocol):
    """What a monitor is put on."""

    model: nn.Module
    optimizer: optim.Optimizer
    scaler: GradScaler


# Block counts come once in 500 steps: with the default cadence, which they are part of.
EVERY_STEP = Schedule(1, 0, block_every_n_steps=0)
AMAX_ONLY = Schedule(10**9, 1, block_every_n_steps=0)
DENSE_DEFAULT = Schedule(6, 3, block_every_n_steps=12)
"""All kinds of steps that the default cadence has, the rare ones oftener."""
After = Callable[[Tensor], None]
Attach = Callable[[Trained], AbstractContextManager[After]]


@dataclass(frozen=True)
class Variant:
    """A way of watching; `attach` yields what is called with the loss after each step.

    Attributes:
        attach: Puts it on what is trained.
        measured: The cadence of the measured steps.
        weighted: The cadence whose cost is told.
        share: How much longer than others it is measured.
    """

    attach: Attach
    measured: Schedule = EVERY_STEP
    weighted: Schedule = EVERY_STEP
    share: float = 1.0


def watched(
    measured: Schedule,
    weighted: Schedule | None = None,
    share: float = 1.0,
    **options: object,
) -> Variant:
    """Returns numwatch at a cadence, its record written to a temporary directory."""

    @contextmanager
    def attach(trained: Trained) -> Iterator[After]:
        with (
            tempfile.TemporaryDirectory() as directory,
            numwatch.watch(
                trained.model,
                trained.optimizer,
                scaler=trained.scaler,
                dir=directory,
                every_n_steps=measured.every_n_steps,
                amax_every_n_steps=measured.amax_every_n_steps,
                block_every_n_steps=measured.block_every_n_steps,
                summary=False,
                strict=True,
                **options,
            ) as watch,
        ):
            yield watch.step

    return Variant(attach, measured, weighted or measured, share)


@contextmanager
def nothing(_trained: Trained) -> Iterator[After]:
    """No monitor: what the pairs of two bare trainings differ by."""
    yield lambda _loss: None


@contextmanager
def two_items(trained: Trained) -> Iterator[After]:
    """The hook people write first: amax and mean of each GEMM's output, read at once."""
    seen: dict[str, tuple[float, float]] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            seen[name] = output.abs().max().item(), output.float().mean().item()
            if output.requires_grad:
                output.register_hook(see_gradient)

        def see_gradient(gradient: Tensor) -> None:
            seen[name] = gradient.abs().max().item(), gradient.float().mean().item()

        return hook

    for name, module in gemms(trained.model):
        module.register_forward_hook(hook_for(name))
    yield lambda _loss: None


@contextmanager
def histogram_observer(trained: Trained) -> Iterator[After]:
    """torch.ao's HistogramObserver on inputs and outputs of each GEMM."""
    from torch.ao.quantization import HistogramObserver

    def hook_for(inputs: nn.Module, outputs: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs(args[0].detach().float())
            outputs(output.detach().float())

        return hook

    device = next(trained.model.parameters()).device
    for _, module in gemms(trained.model):
        observers = (HistogramObserver().to(device) for _ in range(2))
        module.register_forward_hook(hook_for(*observers))
    yield lambda _loss: None


@contextmanager
def debug_underflow_overflow(trained: Trained) -> Iterator[After]:
    """Transformers' DebugUnderflowOverflow."""
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(trained.model, max_frames_to_save=100)
    yield lambda _loss: None


@contextmanager
def wandb_watch(trained: Trained) -> Iterator[After]:
    """wandb.watch of gradients and parameters at every step, offline."""
    import wandb

    with tempfile.TemporaryDirectory() as directory:
        run = wandb.init(mode="offline", dir=directory, settings=wandb.Settings(silent=True))
        try:
            run.watch(trained.model, log="all", log_freq=1)
            yield lambda loss: run.log({"loss": loss})
        finally:
            run.finish()


def gemms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields Linears and 2-D convolutions by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


CONTROL = "bare against bare"
DEFAULT = "numwatch, default"
FULL = "numwatch, every step"
TENSORS = "numwatch, every step, tensors alone"
AMAX = "numwatch, amax only, every step"
VARIANTS = {
    CONTROL: Variant(nothing),
    DEFAULT: watched(DENSE_DEFAULT, Schedule(), share=8),  # so small a cost takes many pairs
    FULL: watched(EVERY_STEP),
    TENSORS: watched(EVERY_STEP, update_samples=0),
    AMAX: watched(AMAX_ONLY),
}
PEERS = {
    "hook with two .item()": Variant(two_items),
    "HistogramObserver": Variant(histogram_observer),
    "DebugUnderflowOverflow": Variant(debug_underflow_overflow),
    "wandb.watch(all)": Variant(wandb_watch),
}
