"""What each precision of the demo asks of the Trainer and of the optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.plugins import MixedPrecision

from numwatch.demo.gpt import MakeOptimizer
from numwatch.errors import NumwatchError, near

LEARNING_RATE = 6e-3

# GradScaler's own interval of 2000 steps is longer than the demo: at this one the scale climbs
# until gradients overflow, falls back and climbs again, as it does over days in a long run.
SCALE_GROWTH_INTERVAL = 40


_adamw = partial(torch.optim.AdamW, lr=LEARNING_RATE)


@dataclass(frozen=True)
class Precision:
    """One way to train the demo.

    Attributes:
        trainer: The Trainer's precision arguments on a device, `cpu` or `cuda`.
        callbacks: Makes the callbacks it needs besides the monitor.
        optimizer: Makes the optimizer.
    """

    trainer: Callable[[str], dict[str, Any]]
    callbacks: Callable[[], list[Callback]] = list
    optimizer: MakeOptimizer = _adamw


def precision_of(name: str) -> Precision:
    """Returns what `name` of `PRECISIONS` stands for.

    Raises:
        NumwatchError: It is not one of them.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        raise NumwatchError(
            f"precision is one of {', '.join(PRECISIONS)}; got {name!r}{near(name, PRECISIONS)}"
        ) from None


def _plain(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda _device: {"precision": name}


def _float16_mixed(device: str) -> dict[str, Any]:
    """With `precision="16-mixed"` Lightning would run BF16 without a scaler on a CPU."""
    scaler = torch.amp.GradScaler(device, growth_interval=SCALE_GROWTH_INTERVAL)
    return {"plugins": [MixedPrecision("16-mixed", device, scaler)]}


def _float8() -> list[Callback]:
    from numwatch.callbacks import Float8Training

    # The head's logits decide the loss directly; FP8 recipes leave it in BF16.
    return [Float8Training(exclude=["head"])]


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "16-mixed": Precision(_float16_mixed),
        "bf16-mixed": Precision(_plain("bf16-mixed")),
        # Not Adam: its eps of 1e-8 is 0 in FP16, and so is the square of a gradient below
        # 2^-12.5, so its first step divides by 0; an eps that helps (1e-4) is above most gradients.
        "16-true": Precision(
            _plain("16-true"), optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.9)
        ),
        "bf16-true": Precision(_plain("bf16-true")),
        "fp8": Precision(_plain("bf16-mixed"), _float8),
        "32-true": Precision(_plain("32-true")),
    }
)
