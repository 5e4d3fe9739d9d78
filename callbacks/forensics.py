"""A Trainer's micro-batch as the search for an origin and the capsule need it."""

from functools import partial
from typing import Any

from numwatch.micro_batch import MicroBatch

from .shadow import step_on_copies


def micro_batch(trainer: Any, batch: Any, batch_idx: int) -> MicroBatch:
    """Returns the micro-batch that a Trainer begins; it holds the batch until it is dropped."""
    from numwatch.taps.fp32 import copy_exactly

    # The count of steps rises on a skipped step too, before anyone could ask.
    step_of = partial(
        step_on_copies,
        trainer,
        batch,
        batch_idx,
        copy_exactly,
        global_step=trainer.global_step,
        current_epoch=trainer.current_epoch,
    )
    return MicroBatch(
        step_of=step_of,
        batch=batch,
        index=batch_idx,
        epoch=trainer.current_epoch,
        parts=trainer.accumulate_grad_batches,
        around=trainer.precision_plugin.train_step_context,
    )
