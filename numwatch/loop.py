"""`numwatch.watch`: the same watching for a plain PyTorch loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn
from typing_extensions import Self

from numwatch.errors import NumwatchError
from numwatch.keeping import View
from numwatch.micro_batch import MicroBatch
from numwatch.record import RECORD_FOLDER
from numwatch.schedule import AMAX_EVERY_N_STEPS, BLOCK_EVERY_N_STEPS, EVERY_N_STEPS
from numwatch.session import Session
from numwatch.settings import CAPSULE_GB, Settings
from numwatch.shadow import LossOf, ShadowStep
from numwatch.taps.placement import of_many_ranks
from numwatch.taps.sampling import SAMPLES
from numwatch.taps.scaler import Scaler
from numwatch.taps.wrappers import (
    optimizer_behind,
    optimizers_in,
    plain_model,
    precision_of,
    scaler_behind,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter  # imports TensorBoard


class LoopWatch:
    """What `watch` returns: a context manager, told of every step by `step`.

    Between entering and leaving, the model carries numwatch's hooks; before and afterwards none.

    Attributes:
        directory: Where the record is.
    """

    def __init__(self, directory: Path, start: Callable[[Path], Session]) -> None:
        self.directory = directory.absolute()
        self._start: Callable[[Path], Session] | None = start
        self._entered: Session | None = None
        self._step = 0
        self._epoch = 0

    @property
    def _session(self) -> Session:
        if self._entered is None:
            raise NumwatchError("numwatch.watch(...) watches inside its `with` block only")
        return self._entered

    def __enter__(self) -> Self:
        """Opens the record, puts the hooks in place and opens the first step."""
        if self._start is None:
            raise NumwatchError("a watch is entered once; call numwatch.watch(...) again")
        start, self._start = self._start, None  # it holds the model, which others may let go of
        self._entered = start(self.directory)
        self._session.begin_step(self._step)
        return self

    def shadow(self, loss_of: LossOf, batch: Any = None) -> None:
        """Tells how the coming batch can be run on a copy of the model.

        Call it before the step's own forward. Every `shadow_every_n_steps` it runs the batch in
        FP32 there and then, and the copy's gradients are compared with the step's. A step that
        fails is run once more to find its origin, under the autocast that the model's forward ran
        under. Nothing of the run is changed.

        Args:
            loss_of: Returns the unscaled loss of the batch for the model it is given; held until
                the step ends.
            batch: The batch, for the capsule of a step that fails: tensors in lists, tuples and
                dictionaries.
        """
        self._session.shadow(lambda: ShadowStep(loss_of))
        self._session.begin_batch(
            lambda: MicroBatch(
                lambda: ShadowStep(loss_of), batch, index=self._step, epoch=self._epoch
            )
        )

    def add_loss(self, loss: Tensor | float) -> None:
        """Adds a micro-batch's share of the loss, where a step is a window of several."""
        self._session.add_loss(loss)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Ends a step: call it after `optimizer.step()` and `scaler.update()`.

        The gradients should still be there: in a skipped step it looks for who overflowed.

        Args:
            loss: The step's unscaled loss, 0-d; kept as it is on its device.
        """
        self._session.add_loss(loss)
        self._session.end_batch()
        self._session.end_step(epoch=self._epoch, batch=self._step)
        self._step += 1
        self._session.begin_step(self._step)

    @property
    def stopping(self) -> bool:
        """Whether `stop_on` asks the loop to end: look after each `step`.

        Where `shadow` tells of batches, a capsule of one is kept before. Of several ranks only the
        first knows, and one that leaves the loop alone would hang the others: False there.
        """
        return self._session.stopping and not of_many_ranks()

    def end_epoch(self) -> None:
        """Ends an epoch: flushes the record and prints the epoch's summary."""
        self._session.end_epoch(self._epoch)
        self._epoch += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes every hook off, flushes, and prints the summary, after an exception too."""
        if isinstance(error, Exception):
            self._session.end_by(error)
        self._session.close(hurry=error is not None)
        self._entered = None


def watch(  # noqa: PLR0913  # the options of one call
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    *,
    scaler: Scaler | None = None,
    dir: str | os.PathLike[str] = "runs/numwatch",  # noqa: A002  # the API's word
    every_n_steps: int = EVERY_N_STEPS,
    amax_every_n_steps: int = AMAX_EVERY_N_STEPS,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    writer: SummaryWriter | None = None,
    summary: bool = True,
    strict: bool = False,
    update_samples: int | None = SAMPLES,
    shadow_every_n_steps: int = 0,
    origin: bool = True,
    capsule_gb: float = CAPSULE_GB,
    audit: bool = True,
    stop_on: str | None = None,
    block_every_n_steps: int = BLOCK_EVERY_N_STEPS,
) -> LoopWatch:
    """Watches a plain PyTorch training loop.

    Example:
        >>> import torch, numwatch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with numwatch.watch(model, optimizer, dir=tmp, summary=False) as watch:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         watch.step(loss=loss)
        >>> numwatch.open_run(tmp).steps().num_rows
        3

    Args:
        model: The model; put it on its device first. What Lightning Fabric or accelerate have set
            up is taken as it is.
        optimizer: Its optimizer or optimizers, to know of skipped steps and gradient norms.
        scaler: The gradient scaler, where there is one; that of Fabric or accelerate is found.
        dir: Directory of the run; the record goes to `<dir>/numwatch`.
        every_n_steps: Full rows every so many steps.
        amax_every_n_steps: Amax and non-finites alone every so many steps; 0 for never.
        include: Globs of modules (`blocks.*`) or slots (`blocks.*:grad_output`) that replace the
            default choice: GEMM modules in all roles, inputs and outputs of recurrent layers,
            outputs of embeddings and norms.
        exclude: Globs taken away from it.
        writer: A TensorBoard writer to show the run in as it goes.
        summary: Print summaries to the terminal.
        strict: Raise numwatch's own errors instead of ending the watching with a warning.
        update_samples: Elements of each parameter whose updates and optimizer state are measured,
            at most, on steps with full rows; None for all, 0 for none.
        shadow_every_n_steps: Let `LoopWatch.shadow` run every so many steps; 0 for never.
        origin: Run a step that failed once more, on a copy of the model, where `LoopWatch.shadow`
            has told how, to name the operation that made the first non-finite value.
        capsule_gb: Size of the capsule, which keeps the first failed step, at most, in 10^9 bytes;
            0 for none.
        audit: Note each operation of the first step with full rows, its dtypes and shapes; a model
            under `torch.compile` is left out.
        stop_on: "critical" sets `LoopWatch.stopping` at a critical finding.
        block_every_n_steps: Count the blocks of GEMM operands, which tell what MX, NVFP4 and block
            FP8 would do to them, on full steps at least so many steps apart; 0 for never.

    Raises:
        NumwatchError: A cadence or a number of samples is not one, or what is given as an
            optimizer is none.
    """
    wrapped = optimizers_in(optimizer_behind(model) if optimizer is None else optimizer)
    if scaler is None:
        scaler = next((found for one in (*wrapped, model) if (found := scaler_behind(one))), None)
    precision = precision_of(model)
    own_model = plain_model(model)
    settings = Settings(
        every_n_steps,
        amax_every_n_steps,
        include,
        exclude,
        strict,
        update_samples,
        shadow_every_n_steps,
        origin=origin,
        capsule_gb=capsule_gb,
        audit=audit,
        stop_on=stop_on,
        block_every_n_steps=block_every_n_steps,
    )

    def start(directory: Path) -> Session:
        return Session(
            own_model,
            directory,
            settings=settings,
            precision=precision or _precision(own_model, scaler),
            optimizers=wrapped,
            scaler=scaler,
            views=partial(_views, writer),
            console=Console() if summary else None,
            announced=False,
        )

    return LoopWatch(Path(dir) / RECORD_FOLDER, start)


def _views(writer: SummaryWriter | None) -> list[View]:
    if writer is None:
        return []
    from numwatch.report.tensorboard import TensorBoardView

    return [TensorBoardView(writer)]


def _precision(model: nn.Module, scaler: Scaler | None) -> str:
    parameter = next((one for one in model.parameters() if one.dtype.is_floating_point), None)
    weights = "no" if parameter is None else str(parameter.dtype).removeprefix("torch.")
    return f"{weights} weights{', loss scaling' if scaler and scaler.is_enabled() else ''}"
