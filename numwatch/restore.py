"""A model made anew, put where that of a run's failed step stood."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from numwatch.errors import NumwatchError
from numwatch.record.capsule import Capsule
from numwatch.taps.selection import clean_path


def restore(model: Any, capsule: Capsule, device: torch.device) -> None:
    """Puts a model made anew where the run's stood."""
    own = model.state_dict()
    kept = {clean_path(name): t for name, t in capsule.state["module"].items()}
    missing = sorted(own.keys() ^ kept.keys())
    if missing:
        raise NumwatchError(
            f"the script's model is not the run's: {len(missing)} tensors are in one of them "
            f"alone, {missing[0]} first"
        )
    pairs = [(own[name], value) for name, value in kept.items()]
    tensors = [pair for pair in pairs if all(isinstance(one, Tensor) for one in pair)]
    dtypes = {t.dtype for made, t in tensors if made.dtype != t.dtype and t.is_floating_point()}
    if len(dtypes) == 1:
        model.to(*dtypes)  # a true low precision, which the Trainer would have asked for
    model.to(device)
    try:
        model.load_state_dict(kept)
        _fill_buffers(model, capsule.state.get("buffers") or {})
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise NumwatchError(f"the script's model is not the run's: {told}") from error
    model.train()
    for part in model.modules():
        if hasattr(part, "automatic_optimization"):  # a LightningModule, here without a Trainer
            part.log = part.log_dict = part.print = _nothing
    if hasattr(model, "automatic_optimization"):
        _give_trainer(model, capsule)


def _fill_buffers(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Sets the buffers that no state dictionary holds; a RuntimeError says which does not fit."""
    own = dict(model.named_buffers())
    for name in own.keys() & kept.keys():
        made, value = own[name], kept[name]
        if (made.shape, made.layout) != (value.shape, value.layout) or value.is_quantized:
            raise RuntimeError(f"buffer {name} is of another shape or kind")
        made.copy_(value)


def _give_trainer(model: Any, capsule: Capsule) -> None:
    """Lets a step read the epoch and the step's number from a Trainer."""
    for namespace in ("pytorch_lightning", "lightning.pytorch"):
        lightning = sys.modules.get(namespace)
        if lightning is not None and isinstance(model, lightning.LightningModule):
            trainer = lightning.Trainer(
                logger=False,
                accelerator="cpu",
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit_loop.epoch_progress.current.processed = capsule.facts["epoch"]
            model.trainer = trainer


def _nothing(*_args: object, **_kwargs: object) -> None:
    """Does nothing."""
