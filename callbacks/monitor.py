"""`NumericsMonitor`: one callback that watches the numbers of a run.

What measures, keeps and reports is imported when a fit starts: a script that only makes a Trainer
does not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from numwatch.schedule import AMAX_EVERY_N_STEPS, BLOCK_EVERY_N_STEPS, EVERY_N_STEPS
from numwatch.settings import CAPSULE_GB, Settings
from numwatch.taps.gate import Gate
from numwatch.taps.sampling import SAMPLES

from ._base import Callback
from .forensics import micro_batch
from .shadow import shadow_step

if TYPE_CHECKING:
    from numwatch.session import Session


class NumericsMonitor(Callback):
    """Watches amax, underflow, overflow and the loss scale of a run, and says what it saw.

    It prints a summary at each epoch's end, draws charts in the Trainer's TensorBoard logger
    (with another logger its scalars), and keeps a record in `<log_dir>/numwatch`, which
    `numwatch report` prints again. Training under it is bitwise the training without it. Of a
    distributed run it watches every rank, and rank 0 keeps what all of them saw.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[NumericsMonitor()], logger=False, accelerator="cpu")

    Args:
        every_n_steps: Full rows every so many optimizer steps.
        amax_every_n_steps: Amax and non-finites alone every so many optimizer steps; 0 for never.
        include: Globs of modules (`model.blocks.*`) or slots (`model.blocks.*:grad_output`) that
            replace the default choice: GEMM modules in all roles, inputs and outputs of recurrent
            layers, and the outputs of embeddings and norms.
        exclude: Globs taken away from it.
        dir: Directory of the run, instead of the Trainer's `log_dir`.
        summary: Print summaries to the terminal.
        strict: Raise numwatch's own errors instead of ending the watching with a warning.
        update_samples: Elements of each parameter whose updates and optimizer state are measured,
            at most, on steps with full rows; None for all, 0 for none.
        shadow_every_n_steps: Run the batch once more in FP32 every so many optimizer steps, and
            compare its gradients with the run's; 0 for never.
        origin: Run a step that failed once more, on a copy of the model, to name the operation that
            made the first non-finite value; three times in a run at most.
        capsule_gb: Size of the capsule, which keeps the first failed step, at most, in 10^9 bytes;
            0 for none.
        audit: Note each operation of the first step with full rows, its dtypes and shapes; a model
            under `torch.compile` is left out.
        stop_on: "critical" ends the fit at a critical finding, as early stopping does, once a
            capsule of a micro-batch is kept; of a distributed run at the epoch's end.
        block_every_n_steps: Count the blocks of GEMM operands, which tell what MX, NVFP4 and block
            FP8 would do to them, on full steps at least so many steps apart; 0 for never.

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
        self._resumed: Path | None = None
        self.directory: Path | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Opens the record and puts the hooks in place, once every strategy and plugin has."""
        self._close()
        log_dir = trainer.log_dir  # asked for on every rank: it is broadcast
        # A logger may have no directory: those of `fast_dev_run`, or one of the user's own.
        chosen = Path(self._dir or log_dir or trainer.default_root_dir).absolute()
        resumed, self._resumed = self._resumed, None
        with self._guard():
            from rich.console import Console

            from numwatch.record import RECORD_FOLDER
            from numwatch.session import Session

            from .views import views_of

            self.directory = resumed or chosen / RECORD_FOLDER
            self._session = Session(
                pl_module,
                self.directory,
                settings=self._settings,
                precision=str(trainer.precision),
                optimizers=trainer.optimizers,
                scaler=trainer.scaler,
                views=partial(views_of, trainer.loggers),
                console=Console() if self._summary else None,
            )

    def on_train_batch_start(
        self, trainer: Any, _pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Opens a step, unless an accumulation window is under way; runs its shadow, if due."""
        if self._session and self._session.step is None:
            self._session.begin_step(trainer.global_step)
            self._session.shadow(partial(shadow_step, trainer, batch, batch_idx))
        if self._session:
            self._session.begin_batch(partial(micro_batch, trainer, batch, batch_idx))

    def on_before_backward(self, _trainer: Any, _pl_module: Any, loss: Tensor) -> None:
        """Takes note of the loss, scaled."""
        if self._session:
            self._session.see_loss(loss)

    def on_before_optimizer_step(
        self, _trainer: Any, _pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Looks at the gradients between unscaling and clipping."""
        if self._session:
            self._session.before_optimizer_step(optimizer)

    def on_train_batch_end(
        self, trainer: Any, _pl_module: Any, outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        """Closes the step when the optimizer's turn has come."""
        if self._session is None:
            return
        self._session.add_loss(outputs.get("loss") if isinstance(outputs, Mapping) else outputs)
        self._session.end_batch()
        step = self._session.step
        if step is not None and trainer.global_step > step:
            self._session.end_step(epoch=trainer.current_epoch, batch=batch_idx)
        if self._session.stopping and trainer.world_size == 1:
            trainer.should_stop = True

    def on_validation_start(self, _trainer: Any, _pl_module: Any) -> None:
        """Takes the hooks off the modules: a validation is not the step's."""
        if self._session:
            self._session.pause()

    def on_validation_end(self, _trainer: Any, _pl_module: Any) -> None:
        """Puts them back."""
        if self._session:
            self._session.resume()

    @property
    def state_key(self) -> str:
        """Tells monitors of different directories apart in checkpoints."""
        return self._generate_state_key(dir=self._dir)

    def on_train_epoch_end(self, trainer: Any, _pl_module: Any) -> None:
        """Prints the epoch's summary."""
        if self._session:
            self._session.end_epoch(trainer.current_epoch)
        if self._settings.stop_on:
            stopping = self._session is not None and self._session.stopping
            if trainer.strategy.broadcast(stopping):  # only rank 0 knows
                trainer.should_stop = True

    def on_train_end(self, _trainer: Any, _pl_module: Any) -> None:
        """Takes the hooks off and prints the summary of the run."""
        self._close()

    def on_exception(self, _trainer: Any, _pl_module: Any, exception: BaseException) -> None:
        """Does the same for a run that failed, after it has kept a capsule of the step."""
        if self._session and isinstance(exception, Exception):
            self._session.end_by(exception)
        self._close(hurry=True)

    def teardown(self, _trainer: Any, _pl_module: Any, stage: str) -> None:
        """Leaves nothing behind, whatever way the fit ended."""
        if stage == "fit":
            self._close()

    def state_dict(self) -> dict[str, Any]:
        """Returns where the record is, so that a resumed run goes on with it."""
        return {"directory": str(self.directory) if self.directory else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the record of the run that is resumed, where it can still be found."""
        directory = state_dict.get("directory")
        if directory and self._dir is None:
            with self._guard():
                from numwatch.record.find import is_record

                self._resumed = Path(directory) if is_record(Path(directory)) else None

    def _guard(self) -> AbstractContextManager[None]:
        """Keeps errors away from the run: what is imported late may not be there, or be broken."""
        return Gate(strict=self._settings.strict).watching()

    def _close(self, *, hurry: bool = False) -> None:
        session, self._session = self._session, None
        if session:
            session.close(hurry=hurry)
