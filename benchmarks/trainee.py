"""What overhead is measured on: a model, its optimizer and a training step in some precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cnn import ResNet
from gpt import GPT
from torch import Tensor, nn

CONTEXT = 128
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subject:
    """A model to train and what it is trained on.

    Attributes:
        make: Builds the model.
        batch: Samples in a batch.
        sample: Draws inputs and targets for so many samples.
    """

    make: Callable[[], nn.Module]
    batch: int
    sample: Callable[[int, torch.Generator], Batch]


def _tokens(vocabulary: int, context: int) -> Callable[[int, torch.Generator], Batch]:
    def sample(batch: int, generator: torch.Generator) -> Batch:
        tokens = torch.randint(0, vocabulary, (batch, context + 1), generator=generator)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return sample


def _images(side: int, classes: int) -> Callable[[int, torch.Generator], Batch]:
    def sample(batch: int, generator: torch.Generator) -> Batch:
        images = torch.randn(batch, 3, side, side, generator=generator)
        return images, torch.randint(0, classes, (batch,), generator=generator)

    return sample


SUBJECTS = {
    ("gpt", "small"): Subject(
        lambda: GPT(vocabulary=256, context=CONTEXT, layers=4, width=256, heads=4),
        16,
        _tokens(256, CONTEXT),
    ),
    # GPT-2 small: 124M parameters with the head tied to the embedding.
    ("gpt", "124m"): Subject(
        lambda: GPT(50304, context=1024, layers=12, width=768, heads=12, tied=True),
        8,
        _tokens(50304, 1024),
    ),
    ("cnn", "small"): Subject(lambda: ResNet((32, 64, 128), 2, 10), 16, _images(32, 10)),
    # ResNet-18, which goes with it.
    ("cnn", "124m"): Subject(
        lambda: ResNet((64, 128, 256, 512), 2, 1000, large_images=True), 64, _images(224, 1000)
    ),
}
MODELS, SIZES = (sorted({key[part] for key in SUBJECTS}) for part in (0, 1))


@dataclass(frozen=True)
class Cell:
    """One case of the matrix.

    Attributes:
        model: One of `MODELS`.
        precision: One of `AUTOCAST`.
        compiled: Whether the model is under `torch.compile`.
        device: What it trains on.
        size: One of `SIZES`.
        batch: Samples in a batch; None for the subject's own.
    """

    model: str = "gpt"
    precision: str = "bf16"
    compiled: bool = False
    device: str = "cpu"
    size: str = "small"
    batch: int | None = None

    @property
    def name(self) -> str:
        """Model, precision and whether compiled, as part of a file name."""
        return f"{self.model}-{self.precision}{'-compiled' if self.compiled else ''}"

    @property
    def subject(self) -> Subject:
        """What is trained."""
        return SUBJECTS[self.model, self.size]

    @property
    def samples(self) -> int:
        """Samples in a batch."""
        return self.batch or self.subject.batch


class Trainee:
    """A model, its optimizer, and one training step."""

    def __init__(self, cell: Cell) -> None:
        torch.manual_seed(0)
        self._cell, self._device = cell, torch.device(cell.device)
        self._dtype = AUTOCAST[cell.precision]
        self.model = cell.subject.make().to(self._device)
        if cell.precision == "fp8":
            _to_float8(self.model, self._device)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        enabled = cell.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=enabled)
        if cell.compiled:
            # Or a graph compiled for a bare model would serve its hooked twin, without the hooks.
            torch._dynamo.config.skip_nnmodule_hook_guards = False  # noqa: SLF001
            self.model = torch.compile(self.model)

    def batch(self, seed: int) -> Batch:
        """Returns inputs and targets on the device."""
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = self._cell.subject.sample(self._cell.samples, generator)
        return inputs.to(self._device), targets.to(self._device)

    def step(self, batch: Batch) -> Tensor:
        """Trains one step and returns the loss."""
        inputs, targets = batch
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            logits = self.model(inputs)
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()


def _to_float8(model: nn.Module, device: torch.device) -> None:
    """Turns the eligible Linears but the head as `Float8Training` does, emulated where it would."""
    from torchao.float8 import Float8LinearConfig

    from numwatch.callbacks._torchao import convert, scaled_mm_fault
    from numwatch.callbacks.float8 import choose

    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    emulate = scaled_mm_fault(Float8LinearConfig(), device, torch.bfloat16) is not None
    chosen = choose(linears, exclude=["head"])
    convert(model, [linears[name] for name in chosen], Float8LinearConfig(emulate=emulate))


@contextmanager
def kernels(cell: Cell) -> Iterator[None]:
    """Within it float8 products on a CPU are computed by the kernel `Float8Training` picks."""
    if cell.precision != "fp8":
        yield
        return
    from numwatch.callbacks.scaled_mm import OneDNNOff

    switch = OneDNNOff()
    switch.enter(torch.device(cell.device))
    try:
        yield
    finally:
        switch.leave()
