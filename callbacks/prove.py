"""Training a baseline and a plan side by side, over the same batches and seeds."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from numwatch.errors import NumwatchError, near
from numwatch.plan import Plan, Prediction
from numwatch.recommend.foretell import foretell, observed
from numwatch.recommend.proof import TOLERANCE, Proof, SlotProof
from numwatch.record import open_run

from .apply import ApplyPlan
from .emulate import EmulatePrecision
from .monitor import NumericsMonitor
from .training import as_list, training_arguments

SEEDS = 3
RECORDED = 20
"""Steps of a run that are recorded in full: enough to pool shares over."""
LAST_SHARE = 0.1
"""Share of a run's steps whose losses are the loss at its end."""


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        model: A LightningModule.
        train: Its training batches; None where the module has its own.
        validation: Its validation batches, or None.
        trainer: Further arguments of the Trainer: `precision`, `accelerator`, `max_steps`.
    """

    model: Any
    train: Any = None
    validation: Any = None
    trainer: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[], Any]
"""Returns a LightningModule, or a tuple (module, training batches[, validation batches[, Trainer
arguments]])."""


def prove(
    plan: Plan,
    make: Make,
    *,
    out: Path,
    seeds: int = SEEDS,
    steps: int | None = None,
    metric: str | None = None,
    tolerance: float = TOLERANCE,
    real: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Proof:
    """Trains what `make` returns with and without a plan, seed by seed, and compares.

    Both runs of a seed start from the same random numbers, so they have the same weights and meet
    the same batches. Each is watched; predictions come from the first baseline's record.

    Args:
        plan: The plan.
        make: Makes what is trained, anew for every run; see `Make`.
        out: Directory of the runs' records, made where missing.
        seeds: How many seeds, 0 and up.
        steps: Optimizer steps of each run; by default as `make`'s Trainer arguments say.
        metric: Logged metric to compare; by default a logged one with `val` and `loss` in its name,
            else the mean training loss over the last tenth of the steps.
        tolerance: Relative rise of the figure that the plan may cost.
        real: Use the real formats through torchao, instead of emulating them.
        progress: Called with a word before each run.

    Raises:
        NumwatchError: `make` returns something else, there is no such metric, or the plan does not
            fit the model.
    """
    if seeds < 1:
        raise NumwatchError(f"a proof takes one seed or more; got {seeds}")
    if real and plan.modules:
        ApplyPlan(plan)  # refuses before a baseline has trained what torchao can not train in
    figures: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    names = set()
    predictions: dict[str, Prediction] = {}
    slots: tuple[SlotProof, ...] = ()
    taken = 0
    for seed in range(seeds):
        for kind in ("baseline", "plan"):
            if progress is not None:
                progress(f"{kind}, seed {seed}")
            directory = out / f"{kind}-{seed}"
            began = time.perf_counter()
            trainer = _train(plan if kind == "plan" else None, make, seed, steps, directory, real)
            seconds[kind] += time.perf_counter() - began
            record = open_run(directory)
            name, figure = _figure(trainer, record.steps()["loss"].to_numpy(), metric)
            names.add(name)
            figures[kind].append(figure)
            taken = record.steps().num_rows
            if kind == "baseline" and not seed:
                predictions = foretell(record, plan)
            elif not seed:
                slots = observed(record, predictions)
    return Proof(
        figure=" and ".join(sorted(names)),
        seeds=tuple(range(seeds)),
        baseline=tuple(figures["baseline"]),
        plan=tuple(figures["plan"]),
        steps=taken,
        tolerance=tolerance,
        slots=slots,
        seconds=dict(seconds),
        emulated=not real,
    )


def _train(
    plan: Plan | None, make: Make, seed: int, steps: int | None, directory: Path, real: bool
) -> Any:
    pl.seed_everything(seed, verbose=False)
    subject = _subject(make())
    callbacks = as_list(subject.trainer.get("callbacks"))
    arguments = {
        "logger": False,
        "enable_checkpointing": _has(callbacks, "Checkpoint"),
        "enable_progress_bar": _has(callbacks, "ProgressBar"),
        "enable_model_summary": _has(callbacks, "ModelSummary"),
        "num_sanity_val_steps": 0,
        **subject.trainer,
    }
    if not arguments["logger"]:
        callbacks = [one for one in callbacks if not _has([one], "LearningRateMonitor")]
    if steps is not None:
        # Validated once, after the last step.
        arguments.update(
            max_steps=steps, max_epochs=-1, val_check_interval=steps, check_val_every_n_epoch=None
        )
    if plan is not None:
        arguments = {**arguments, **training_arguments(plan, arguments)}
    every = max(arguments.get("max_steps") or 0, RECORDED) // RECORDED
    monitor = NumericsMonitor(
        every_n_steps=every, block_every_n_steps=every, dir=str(directory), summary=False
    )
    rounding = [] if plan is None or not plan.modules else [_rounding(plan, real)]
    # Converted before the monitor looks for the modules to watch.
    arguments["callbacks"] = [*callbacks, *rounding, monitor]
    trainer = pl.Trainer(**arguments)
    pl.seed_everything(seed, verbose=False)
    trainer.fit(subject.model, subject.train, subject.validation)
    return trainer


def _rounding(plan: Plan, real: bool) -> Any:
    return ApplyPlan(plan) if real else EmulatePrecision(plan)


def _has(callbacks: Sequence[Any], kind: str) -> bool:
    """Whether one of them is of a class of this name, in either namespace."""
    return any(cls.__name__ == kind for one in callbacks for cls in type(one).__mro__)


def _subject(made: Any) -> Subject:
    parts = made if isinstance(made, tuple) else (made,)
    # Of either namespace, so by what it can do and not by its class.
    module = bool(parts) and not isinstance(parts[0], type) and hasattr(parts[0], "training_step")
    if not module or not all(isinstance(one, Mapping) for one in parts[3:4]) or parts[4:]:
        raise NumwatchError(
            "what is proved is a LightningModule, or a tuple of it, its training batches, its "
            "validation batches and a dictionary of Trainer arguments; got "
            f"{', '.join(type(part).__name__ for part in parts)}"
        )
    return Subject(*parts)


def _figure(trainer: Any, losses: Any, metric: str | None) -> tuple[str, float]:
    """The name and value of what is compared."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if metric is not None and metric not in logged:
        raise NumwatchError(
            f"no metric {metric!r} was logged; logged were {', '.join(sorted(logged)) or 'none'}"
            f"{near(metric, logged)}"
        )
    found = metric or next(filter(_is_validation_loss, logged), None)
    if found is not None:
        return found, logged[found]
    known = losses[~np.isnan(losses)] if len(losses) and not np.isnan(losses[-1]) else losses
    last = known[-max(1, math.ceil(len(known) * LAST_SHARE)) :]
    if not len(last):
        raise NumwatchError("nothing to compare: log a validation loss, or name a --metric")
    return "loss at the end", float(last.mean())


def _is_validation_loss(name: str) -> bool:
    # `interval_loss` and `value_loss` are none.
    return re.search(r"(?<![a-z])val(?!ue)", name.lower()) is not None and "loss" in name.lower()
