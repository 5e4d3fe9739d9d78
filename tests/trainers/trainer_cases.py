"""The table: how people train, in which precisions, and what numwatch must see of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import trainer_huggingface as huggingface
import trainer_lightning as lightning
import trainer_loops as loops
import trainer_nets as nets
from trainer_nets import BATCHES, PLAIN, Net

ALL = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
WITH_FP8 = (*ALL, "fp8")
TWO = ("32-true", "16-mixed")
SOME = (*TWO, "bf16-true")
STEPS = tuple(range(BATCHES))


@dataclass(frozen=True)
class Setting:
    """A cell of the table, run bare or watched."""

    precision: str
    directory: Path
    watched: bool

    def record(self, number=0):
        return self.directory / str(number)


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        name: As the documentation names it.
        run: Trains in a setting and returns what is left, a `Trained`.
        net: The net, which knows its slots.
        precisions: Those it is tried in.
        always: Those that also quick test runs try.
        steps: Step numbers that the record must have.
        calls: How often the net is called in a step.
        losses: Whether a step's loss is in the record.
        ignore: Warnings that come without numwatch too.
        note: What the documentation says of it.
        needs: A library without which it is skipped.
    """

    name: str
    run: Callable[[Setting], Any]
    net: Net = PLAIN
    precisions: tuple[str, ...] = ALL
    always: tuple[str, ...] = TWO
    steps: tuple[int, ...] = STEPS
    calls: int = 1
    losses: bool = True
    ignore: tuple[str, ...] = ()
    note: str = ""
    needs: str = ""


def _ways():
    """Every Trainer, and every way to use it, on one net."""
    yield Case("Lightning Trainer", lightning.fit(PLAIN), precisions=WITH_FP8)
    yield Case(
        "Lightning Trainer, lightning.pytorch",
        lightning.fit(PLAIN, "lightning.pytorch"),
        precisions=SOME,
    )
    for namespace in ("pytorch_lightning", "lightning.pytorch"):
        yield Case(
            f"LightningCLI, {namespace}",
            lightning.cli(PLAIN, namespace),
            precisions=SOME,
            # Lightning's own call of jsonargparse; of a kind the first tells all.
            ignore=("(?s).*(JsonargparseDeprecationWarning|was deprecated in v4)",),
        )
    yield Case("Lightning Fabric", loops.fabric(PLAIN))
    yield Case(
        "Lightning Fabric, lightning_fabric",
        loops.fabric(PLAIN, "lightning_fabric"),
        precisions=SOME,
    )
    yield Case(
        "Lightning Fabric, accumulation and clipping",
        loops.fabric(PLAIN, accumulate=2, clip=0.1),
        steps=(0, 1),
        calls=2,
    )
    yield Case("plain PyTorch loop", loops.loop(PLAIN), precisions=WITH_FP8)
    yield Case(
        "accelerate",
        loops.accelerated(PLAIN),
        precisions=("32-true", "bf16-mixed"),
        always=("bf16-mixed",),
    )
    yield Case("Hugging Face Trainer", huggingface.train(PLAIN))
    yield Case(
        "Hugging Face Trainer, accumulation and evaluation",
        huggingface.train(
            PLAIN, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1
        ),
        steps=(0, 1),
        calls=2,
    )
    yield Case("manual optimization", lightning.fit(PLAIN, changes=lightning.MANUAL))
    yield Case(
        "manual optimization, two optimizers",
        lightning.fit(PLAIN, changes=lightning.MANUAL_TWO),
        steps=tuple(2 * step for step in STEPS),
    )
    yield Case(
        "several training dataloaders",
        lightning.fit(PLAIN, changes=lightning.COMBINED),
        calls=2,
    )
    yield Case("several validation dataloaders", lightning.fit(PLAIN, changes=lightning.VALIDATED))
    yield Case(
        "sanity validation, and validation within an epoch",
        lightning.fit(
            PLAIN, changes=lightning.ONE_VALIDATED, num_sanity_val_steps=2, val_check_interval=2
        ),
    )
    yield Case(
        "overfit_batches",
        lightning.fit(PLAIN, overfit_batches=2, max_epochs=2),
        ignore=(".*overfit.*",),
    )
    yield Case("fast_dev_run", lightning.fit(PLAIN, fast_dev_run=2), steps=(0, 1))
    yield Case("fit called twice", lightning.fit_twice(PLAIN), steps=tuple(range(2 * BATCHES)))
    yield Case("two monitors", lightning.fit(PLAIN, monitors=2))
    yield Case(
        "WeightAveraging",
        lightning.fit(PLAIN, callbacks=_averaging),
        precisions=tuple(p for p in ALL if p != "16-true"),  # Lightning can not average those
    )
    yield Case(
        "StochasticWeightAveraging",
        lightning.fit(PLAIN, callbacks=_stochastic_averaging, max_epochs=3),
        steps=tuple(range(3 * BATCHES)),
    )
    yield Case(
        "gradient accumulation",
        lightning.fit(PLAIN, accumulate_grad_batches=2),
        steps=(0, 1),
        calls=2,
    )
    yield Case("gradient clipping", lightning.fit(PLAIN, gradient_clip_val=0.1))
    yield Case("model built in configure_model", lightning.configured(PLAIN))
    yield Case("meta device", lightning.configured(PLAIN, meta=True))


def _nets():
    """Every build of a model, under Lightning's Trainer."""
    for name, net in {
        "gradient checkpointing": nets.checkpointed(use_reentrant=False),
        "gradient checkpointing, reentrant": nets.checkpointed(use_reentrant=True),
        "shared weights": nets.TIED,
        "a cell called many times": nets.STEPWISE,
        "modules called conditionally": nets.CONDITIONAL,
        "LoRA": nets.LORA,
        "parametrize": nets.parametrized_net("symmetric"),
        "weight_norm": nets.parametrized_net("weight_norm"),
        "spectral_norm": nets.parametrized_net("spectral_norm"),
        "channels-last convolutions": nets.CONVOLUTIONS,
    }.items():
        yield Case(name, lightning.fit(net), net)
    yield Case(
        "LSTM",
        lightning.fit(nets.RECURRENT),
        nets.RECURRENT,
        precisions=("32-true", "bf16-mixed", "bf16-true"),  # oneDNN has no FP16 LSTM on CPUs
        always=("32-true", "bf16-mixed"),
    )
    yield Case("peft", lightning.fit(nets.PEFT), nets.PEFT, needs="peft")


def _averaging():
    return [pl.callbacks.WeightAveraging()]


def _stochastic_averaging():
    return [pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)]


CASES = (*_ways(), *_nets())
