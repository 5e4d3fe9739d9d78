"""A Trainer's step run once more on a copy of its module, and what the copy finds for a Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from typing_extensions import Self

from numwatch.errors import NumwatchError

if TYPE_CHECKING:
    from numwatch.shadow import ShadowStep

# What `torch.compile` of a whole LightningModule leaves on it: functions bound to the original.
_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def shadow_step(trainer: Any, batch: Any, batch_idx: int) -> ShadowStep:
    """Returns a Trainer's next step, for a `ShadowPass` to run before the Trainer does.

    The copy's `training_step` gets a copy of the batch. It may read all it likes of the Trainer;
    what it logs, prints or sets there is forgotten.
    """
    from numwatch.taps.fp32 import copy_in_fp32

    return step_on_copies(trainer, batch, batch_idx, copy_in_fp32)


def step_on_copies(
    trainer: Any,
    batch: Any,
    batch_idx: int,
    copy_of: Callable[[Any], Any],
    **instead: object,
) -> ShadowStep:
    """Returns a Trainer's step, for a copy of its module.

    Args:
        trainer: The Trainer.
        batch: The batch.
        batch_idx: Its number.
        copy_of: Copies the batch.
        instead: Attributes of the Trainer that have changed since the step began.
    """
    from numwatch.shadow import ShadowStep

    stand_in = _trainer_stand_in(trainer, **instead)
    loss_of = partial(_loss_of, trainer=stand_in, batch=batch, batch_idx=batch_idx, copy_of=copy_of)
    loggers = zip(trainer.loggers, stand_in.loggers, strict=True)
    return ShadowStep(loss_of, [(trainer, stand_in), *loggers])


def _loss_of(
    copied: nn.Module, *, trainer: Any, batch: Any, batch_idx: int, copy_of: Callable[[Any], Any]
) -> Tensor | None:
    """Runs a step on a copy of the module as Lightning would; returns its part of the loss."""
    module: Any = copied
    if not module.automatic_optimization:
        raise NumwatchError("the module steps its optimizers itself (automatic_optimization=False)")
    if getattr(module, "_compiler_ctx", None):
        for name in _COMPILED:
            vars(module).pop(name, None)
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise NumwatchError("training_step takes a dataloader_iter, which can not be read twice")
    module.trainer = trainer
    for part in module.modules():
        if hasattr(part, "automatic_optimization"):  # the module, or one of its own kind within
            part.log = part.log_dict = part.print = _nothing
    batch = copy_of(batch)
    if module.on_train_batch_start(batch, batch_idx) == -1:
        return None  # the rest of the epoch is left out
    with_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    output = module.training_step(*((batch, batch_idx) if with_index else (batch,)))
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return None if loss is None else loss / trainer.accumulate_grad_batches


class _StandIn:
    """Reads like an object; what is set on it stays here, and some attributes are others.

    It passes for an instance of the object's class.
    """

    def __init__(self, real: object, **instead: object) -> None:
        vars(self).update(instead, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @property  # type: ignore[misc]  # as unittest.mock does
    def __class__(self) -> Any:
        """The object's class."""
        return type(self._real)

    def __deepcopy__(self, _memo: dict[int, Any]) -> _StandIn:
        return self


class _Logger(_StandIn):
    """A logger whose every method does nothing."""

    def __init__(self, real: object) -> None:
        super().__init__(real, experiment=_Void())

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return _nothing if callable(value) else value


class _Void:
    """Whatever is asked of it, it does nothing and gives itself."""

    def __getattr__(self, _name: str) -> _Void:
        return self

    def __call__(self, *_args: object, **_kwargs: object) -> _Void:
        return self

    def __getitem__(self, _key: object) -> _Void:
        return self

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Void:
        return self


def _trainer_stand_in(trainer: Any, **instead: object) -> Any:
    loggers = [_Logger(logger) for logger in trainer.loggers]
    strategy = trainer.strategy
    optimizers = [_optimizer_stand_in(optimizer) for optimizer in trainer.optimizers]
    wrapped = [
        _optimizer_stand_in(each, optimizer=_optimizer_stand_in(each.optimizer))
        for each in strategy._lightning_optimizers  # noqa: SLF001
    ]
    schedulers = [
        _StandIn(config, scheduler=_StandIn(config.scheduler, step=_nothing))
        for config in trainer.lr_scheduler_configs
    ]
    return _StandIn(
        trainer,
        logger=loggers[0] if loggers else None,
        loggers=loggers,
        optimizers=optimizers,
        strategy=_StandIn(strategy, _lightning_optimizers=wrapped),
        lr_scheduler_configs=schedulers,
        progress_bar_callback=None,
        save_checkpoint=_nothing,
        **instead,
    )


def _optimizer_stand_in(real: Any, **instead: object) -> _StandIn:
    """An optimizer that never steps, whose learning rates may be set without effect."""
    groups = [
        {k: v if k == "params" else copy.deepcopy(v) for k, v in group.items()}
        for group in real.param_groups
    ]
    return _StandIn(real, step=_nothing, zero_grad=_nothing, param_groups=groups, **instead)


def _nothing(*_args: object, **_kwargs: object) -> None:
    """Does nothing."""
