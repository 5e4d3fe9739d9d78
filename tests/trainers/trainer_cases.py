"""The table: how people train, in which precisions, and what numwatch must see of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import trainer_huggingface as huggingface
import trainer_lightning as lightning
import trainer_loops as loops
import trainer_nets as nets
from trainer_data import BATCHES
from trainer_nets import PLAIN, Net

ALL = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
WITH_FP8 = (*ALL, "fp8")
TWO = ("32-true", "16-mixed")
SOME = (*TWO, "bf16-true")
STEPS = tuple(range(BATCHES))
# transformers 4 asks for autocast by its old name.
OLD_AUTOCAST = "`torch.cpu.amp.autocast"
EVALUATED = "an evaluation is not recorded, and meets no hooks"


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


def _trainers():
    """Every Trainer, and every loop of the user's own."""
    yield Case(
        "Lightning Trainer",
        lightning.fit(PLAIN),
        precisions=WITH_FP8,
        note="FP8 by `Float8Training`",
    )
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
            note="all of it from YAML",
        )
    yield Case(
        "Lightning Fabric",
        loops.fabric(PLAIN),
        precisions=WITH_FP8,
        note="`numwatch.watch` takes what `fabric.setup` returns; the scaler is found within",
    )
    yield Case(
        "Lightning Fabric, lightning_fabric",
        loops.fabric(PLAIN, "lightning_fabric"),
        precisions=SOME,
    )
    yield Case(
        "Lightning Fabric, accumulation and clipping",
        loops.fabric(PLAIN, accumulate=2, clip=0.1),
        precisions=SOME,
        steps=(0, 1),
        calls=2,
        note="`grad_norm` is that after clipping, as in every loop of your own",
    )
    yield Case(
        "plain PyTorch loop",
        loops.loop(PLAIN),
        precisions=WITH_FP8,
        note="FP8 by torchao's `convert_to_float8_training`",
    )
    yield Case(
        "accelerate",
        loops.accelerated(PLAIN),
        precisions=("32-true", "bf16-mixed"),
        always=("bf16-mixed",),
        note="its scaler is found too; on a CPU it has no FP16",
    )
    yield Case(
        "Hugging Face Trainer",
        huggingface.train(PLAIN),
        precisions=WITH_FP8,
        ignore=(OLD_AUTOCAST,),
        note="the loss is the model's own; `grad_norm` is that after clipping",
    )
    yield Case(
        "Hugging Face Trainer, accumulation and evaluation",
        huggingface.train(
            PLAIN, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1
        ),
        precisions=SOME,
        steps=(0, 1),
        calls=2,
        note=EVALUATED,
    )


def _ways():
    """Ways to use Lightning's Trainer."""
    yield Case(
        "manual optimization", lightning.fit(PLAIN, changes=lightning.MANUAL), precisions=WITH_FP8
    )
    yield Case(
        "manual optimization, two optimizers",
        lightning.fit(PLAIN, changes=lightning.MANUAL_TWO),
        steps=tuple(2 * step for step in STEPS),
        note="steps are numbered as `global_step` is: two a batch",
    )
    yield Case(
        "several training dataloaders",
        lightning.fit(PLAIN, changes=lightning.COMBINED),
        precisions=SOME,
        calls=2,
        note="the calls of a module in a step merge into one row",
    )
    yield Case(
        "several validation dataloaders",
        lightning.fit(PLAIN, changes=lightning.VALIDATED),
        precisions=SOME,
        note=EVALUATED,
    )
    yield Case(
        "sanity validation, and validation within an epoch",
        lightning.fit(
            PLAIN, changes=lightning.ONE_VALIDATED, num_sanity_val_steps=2, val_check_interval=2
        ),
        precisions=SOME,
        note=EVALUATED,
    )
    yield Case(
        "overfit_batches",
        lightning.fit(PLAIN, overfit_batches=2, max_epochs=2),
        precisions=SOME,
        ignore=(".*overfit.*",),
    )
    yield Case("fast_dev_run", lightning.fit(PLAIN, fast_dev_run=2), precisions=SOME, steps=(0, 1))
    yield Case(
        "fit called twice",
        lightning.fit_twice(PLAIN),
        precisions=SOME,
        steps=tuple(range(2 * BATCHES)),
        note="one record, in which each fit is an attempt",
    )
    yield Case(
        "two monitors",
        lightning.fit(PLAIN, monitors=2),
        precisions=SOME,
        note="each with a `dir` of its own",
    )
    yield Case(
        "WeightAveraging",
        lightning.fit(PLAIN, callbacks=_averaging),
        precisions=tuple(p for p in ALL if p != "16-true"),
        note="the average is not watched; Lightning makes none of FP16 weights",
    )
    yield Case(
        "StochasticWeightAveraging",
        lightning.fit(PLAIN, callbacks=_stochastic_averaging, max_epochs=3),
        steps=tuple(range(3 * BATCHES)),
    )
    yield Case(
        "gradient accumulation",
        lightning.fit(PLAIN, accumulate_grad_batches=2),
        precisions=WITH_FP8,
        steps=(0, 1),
        calls=2,
        note="the micro-batches of a step merge into one row",
    )
    yield Case(
        "gradient clipping",
        lightning.fit(PLAIN, gradient_clip_val=0.1),
        precisions=WITH_FP8,
        note="`grad_norm` is that before clipping",
    )
    yield Case("model built in configure_model", lightning.configured(PLAIN), precisions=SOME)
    yield Case(
        "meta device",
        lightning.configured(PLAIN, meta=True),
        precisions=SOME,
        note="materialised in `configure_model`",
    )


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
        precisions = WITH_FP8 if net.fp8 else ALL
        yield Case(name, lightning.fit(net), net, precisions, note=net.note)
    yield Case(
        "LSTM",
        lightning.fit(nets.RECURRENT),
        nets.RECURRENT,
        precisions=("32-true", "bf16-mixed", "bf16-true"),
        always=("32-true", "bf16-mixed"),
        note=nets.RECURRENT.note,
    )
    yield Case("peft", lightning.fit(nets.PEFT), nets.PEFT, precisions=SOME, needs="peft")


def _averaging():
    if not hasattr(pl.callbacks, "WeightAveraging"):
        pytest.skip(f"Lightning {pl.__version__} averages no weights")
    return [pl.callbacks.WeightAveraging()]


def _stochastic_averaging():
    return [pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)]


CASES = (*_trainers(), *_ways(), *_nets())


def table():
    """The table as the documentation has it."""
    yield f"| | {' | '.join((*ALL, 'FP8'))} | |"
    yield "|" + " --- |" * (len(WITH_FP8) + 2)
    for case in CASES:
        tried = (" ✓ " if precision in case.precisions else " " for precision in WITH_FP8)
        yield f"| {case.name} |{'|'.join(tried)}|{f' {case.note} ' if case.note else ' '}|"
