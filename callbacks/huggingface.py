"""`NumericsCallback`: the same watching for the Trainer of Hugging Face's transformers.

It is imported by its own name, `from numwatch.callbacks.huggingface import NumericsCallback`, and
wants transformers and accelerate: numwatch's extra `hf`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from torch import nn
from typing_extensions import Self

from numwatch.record import RECORD_FOLDER
from numwatch.schedule import AMAX_EVERY_N_STEPS, BLOCK_EVERY_N_STEPS, EVERY_N_STEPS
from numwatch.session import Session
from numwatch.settings import CAPSULE_GB, Settings
from numwatch.taps.sampling import SAMPLES
from numwatch.taps.wrappers import scaler_behind

from ._forwards import Forwards

try:
    import accelerate  # noqa: F401  # what its Trainer does not go without
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    text = (
        "numwatch.callbacks.huggingface needs transformers and accelerate; "
        "type: pip install 'transformers>=4.50' 'accelerate>=1.1'"
    )
    raise ImportError(text) from error

_TRUE = {torch.bfloat16: "bf16-true", torch.float16: "16-true", torch.float64: "64-true"}
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class NumericsCallback(TrainerCallback):  # type: ignore[misc]  # untyped where it is missing
    """Watches amax, underflow, overflow and the loss scale of a run, and says what it saw.

    It prints a summary at each epoch's end and keeps a record in `<output_dir>/numwatch`, which
    `numwatch report` prints again. Training under it is bitwise the training without it. A run
    that is resumed continues its record. Of a distributed run it watches every rank, and rank 0
    keeps what all of them saw.

    The loss is the one that the model returns: of a Trainer with a `compute_loss` of its own, of
    `compute_loss_func` and of label smoothing no loss is seen, or the model's own. The norm of the
    gradients is taken after clipping, as the optimizer gets them; the rows of `grad_weight` are of
    before.

    transformers tells callbacks nothing of a training that fails. Where that is to be recorded, and
    its hooks are to go at once, put the training inside: `with callback: trainer.train()`.

    Example:
        >>> from transformers import Trainer, TrainingArguments
        >>> arguments = TrainingArguments(output_dir=tmp, use_cpu=True, report_to="none")
        >>> trainer = Trainer(model, arguments, callbacks=[NumericsCallback()])

    Args:
        every_n_steps: As of `NumericsMonitor`, like all that follow.
        amax_every_n_steps: Amax and non-finites alone every so many optimizer steps; 0 for never.
        include: Globs of modules (`model.layers.*`) or slots (`model.layers.*:grad_output`) that
            replace the default choice.
        exclude: Globs taken away from it.
        dir: Directory of the run, instead of the Trainer's `output_dir`.
        summary: Print summaries to the terminal.
        strict: Raise numwatch's own errors instead of ending the watching with a warning.
        update_samples: Elements of each parameter whose updates and optimizer state are measured.
        shadow_every_n_steps: Run the batch once more in FP32 every so many optimizer steps.
        origin: Run a step that failed once more to name the operation that made it fail.
        capsule_gb: Size of the capsule of the first failed step, at most, in 10^9 bytes.
        audit: Note each operation of the first step with full rows.
        stop_on: "critical" ends the training at a critical finding; not where several ranks train.
        block_every_n_steps: Count the blocks of GEMM operands on steps at least so far apart.

    Attributes:
        directory: Where the record is, None before the training.

    Raises:
        NumwatchError: A cadence or a number of samples is not one.
    """

    def __init__(
        self,
        every_n_steps: int = EVERY_N_STEPS,
        amax_every_n_steps: int = AMAX_EVERY_N_STEPS,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        dir: str | None = None,  # noqa: A002  # the API's word
        summary: bool = True,
        strict: bool = False,
        update_samples: int | None = SAMPLES,
        shadow_every_n_steps: int = 0,
        origin: bool = True,
        capsule_gb: float = CAPSULE_GB,
        audit: bool = True,
        stop_on: str | None = None,
        block_every_n_steps: int = BLOCK_EVERY_N_STEPS,
    ) -> None:
        self._settings = Settings(
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
        self._dir = dir
        self._summary = summary
        self._session: Session | None = None
        self._forwards: Forwards | None = None
        self._epoch = self._batch = 0
        self.directory: Path | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Opens the record and puts the hooks in place, once accelerate has prepared all."""
        del state, control
        self._close()
        self.directory = Path(self._dir or args.output_dir).absolute() / RECORD_FOLDER
        self._epoch = self._batch = 0
        optimizer = kwargs.get("optimizer")
        scaler = scaler_behind(optimizer)
        precision = _precision(args, model, scaled=scaler is not None)
        self._session = Session(
            model,
            self.directory,
            settings=self._settings,
            precision=precision,
            optimizers=[] if optimizer is None else [optimizer],
            scaler=scaler,
            console=Console() if self._summary else None,
            announced=False,
        )
        parts, dtype = args.gradient_accumulation_steps, _MIXED.get(precision)
        around = partial(torch.autocast, args.device.type, dtype) if dtype else None
        self._forwards = Forwards(model, self._session, parts, around)
        self._pause()  # there may be an evaluation first

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes note of which epoch it is."""
        del args, control, kwargs
        self._epoch, self._batch = int((state.epoch or 0.0) + 1e-6), 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens a step, before the first micro-batch of its window."""
        del args, control, kwargs
        if self._session and self._forwards:
            self._session.resume()
            self._forwards.attach()
            self._session.begin_step(state.global_step)
            self._forwards.begin_step(epoch=self._epoch, batch=self._batch)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on to the next micro-batch of a window: only at its end a step can be skipped."""
        del args, state, control, kwargs
        self._batch += 1
        if self._forwards:
            self._forwards.next_batch(self._batch)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the step, between the scaler's update and the clearing of the gradients."""
        del args, state, control, kwargs
        if self._session and self._forwards:
            self._session.add_loss(self._forwards.take_loss())
            self._session.end_batch()
            self._session.end_step(epoch=self._epoch, batch=self._batch)
        self._batch += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off for an evaluation; ends the training where `stop_on` asks for it."""
        del state, kwargs
        if self._session and control.should_evaluate:
            self._pause()
        if self._session and self._session.stopping and args.world_size == 1:
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints the epoch's summary; an evaluation may follow."""
        del args, state, control, kwargs
        if self._session:
            self._pause()
            self._session.end_epoch(self._epoch)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off and prints the summary of the run."""
        del args, state, control, kwargs
        self._close()

    def __enter__(self) -> Self:
        """Surrounds a training, to be told of its failure."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves nothing behind, whatever way the training ended."""
        if self._session and isinstance(error, Exception):
            self._session.end_by(error)
        self._close(hurry=error is not None)

    def _pause(self) -> None:
        if self._session and self._forwards:
            self._session.pause()
            self._forwards.detach()

    def _close(self, *, hurry: bool = False) -> None:
        session, self._session = self._session, None
        forwards, self._forwards = self._forwards, None
        if forwards:
            forwards.detach()
        if session:
            session.close(hurry=hurry)


def _precision(args: Any, model: nn.Module, *, scaled: bool) -> str:
    """Names a Trainer's precision as Lightning would."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    weights = next(floats, torch.float32)
    if weights in _TRUE:
        return _TRUE[weights]
    if scaled:
        return "16-mixed"
    return "bf16-mixed" if args.bf16 else "32-true"
