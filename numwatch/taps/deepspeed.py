"""What DeepSpeed's optimizer tells of its engine, which scales, clips, skips and steps itself."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from numwatch.taps.optimizers import OptimizerTaps
from numwatch.taps.placement import of_many_ranks
from numwatch.taps.scaler import Scaler
from numwatch.taps.tape import found_inf_column
from numwatch.taps.wrappers import engine_optimizer_behind

_UNSEEN = "updates, state and who overflowed: DeepSpeed steps flat parts of its own"


def taps_and_scaler(
    optimizers: Sequence[Any], scaler: Scaler | None
) -> tuple[Callable[..., OptimizerTaps], Scaler | None]:
    """Returns what makes the taps of optimizers as a user has them, and the scaler in force."""
    engine_optimizer = next(filter(None, map(engine_optimizer_behind, optimizers)), None)
    if engine_optimizer is None:
        return OptimizerTaps, scaler
    return partial(EngineTaps, engine_optimizer), EngineScaler(engine_optimizer)


class EngineScaler:
    """The loss scale of a DeepSpeed engine, told as a gradient scaler tells its own."""

    def __init__(self, engine_optimizer: Any) -> None:
        """Takes the optimizer that `deepspeed.initialize` returns."""
        self._optimizer = engine_optimizer

    def is_enabled(self) -> bool:
        """Whether losses are scaled: under BF16 and FP32 they are not."""
        config = getattr(self._optimizer, "loss_scale_config", self._optimizer)
        return self.get_scale() != 1.0 or bool(getattr(config, "dynamic_loss_scale", False))

    def get_scale(self) -> float:
        """Returns the scale in force, which DeepSpeed keeps on the host."""
        return float(getattr(self._optimizer, "loss_scale", None) or 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the engine keeps its state itself."""
        return {}


class EngineTaps(OptimizerTaps):
    """Follows the optimizer inside of DeepSpeed's, which is called unless a step is skipped.

    It is given flat parts of the parameters, unscaled and clipped, of this rank alone: what they
    hold is not looked at. The norm of all gradients is the engine's own.
    """

    def __init__(self, engine_optimizer: Any, *args: Any) -> None:
        """Takes DeepSpeed's optimizer, and what `OptimizerTaps` takes."""
        super().__init__(*args)
        self._engine_optimizer = engine_optimizer
        self._wanted, self._updates = self._updates is not None, None

    def announce(self, optimizer: torch.optim.Optimizer, scaler: Scaler | None) -> None:
        """No turn of its own: the engine is asked to step at each micro-batch of a window."""

    def finish(self, scaler: Scaler | None) -> list[str]:
        """Ends a step: asks the engine for the norm and whether it met an inf."""
        unseen = super().finish(scaler)
        norm = getattr(self._engine_optimizer, "_global_grad_norm", None)
        if isinstance(norm, Tensor | float) and not (of_many_ranks() and dist.get_rank()):
            norm = norm.double() if isinstance(norm, Tensor) else norm
            self._tape.put("grad_norm_squared", norm * norm)  # a float has no overflow so
        overflow = not any(self.stepped) and bool(
            getattr(self._engine_optimizer, "overflow", False)
        )
        self._tape.add(found_inf_column(0), float(overflow))
        return unseen

    def unseen(self, scaler: Scaler | None) -> Iterator[str]:
        """Yields what the engine keeps to itself."""
        del scaler
        if self._wanted:
            yield _UNSEEN

    def _blame(self) -> None:
        """Nobody: the gradients are gone."""

    def _see_gradients(self, optimizer: torch.optim.Optimizer, scale: Tensor | float = 1.0) -> None:
        """Not those of the flat parts."""
