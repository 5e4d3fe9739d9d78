"""What histograms foretell of formats and recipes, against really rounding the tensors.

    python benchmarks/predictions.py                # a few minutes on two CPU cores

Trains the demo's GPT in BF16 and in FP32 and takes every operand of every Linear at some steps: its
statistics, from which the flushed and saturated shares are foretold, and the tensor itself, which
is really rounded. Where the prediction says that it is exact it must equal the count, elsewhere the
count must lie within its bounds. The table has the worst differences of the estimates.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader

from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.precision import precision_of
from numwatch.demo.quiet import quiet
from numwatch.demo.text import Windows, corpus
from numwatch.emulate.casts import amax_of, cast_of
from numwatch.formats import get_block_format, get_format
from numwatch.plan import Operand
from numwatch.recipes.scaling import CurrentScaling
from numwatch.recipes.spec import parse_recipe, recipe_text
from numwatch.recommend.predict import DIRECTIONS, predicted_shares
from numwatch.stats import tensor_stats

RESULTS = Path(__file__).parent / "results" / "predictions-cpu.json"
TENSOR = [
    (get_format(name), parse_recipe(recipe))
    for name in ("e4m3", "e5m2")
    for recipe in ("static", "static:scale=1024", "current", "current:power_of_two=true")
]
PARTS = [
    *(
        (get_block_format(name), parse_recipe(f"mx:rule={rule}"))
        for name in ("mxfp8-e4m3", "mxfp8-e5m2", "mxfp6-e3m2", "mxfp4")
        for rule in ("floor", "ceil", "even", "rceil")
    ),
    (get_block_format("nvfp4"), parse_recipe("nvfp4")),
    (get_block_format("nvfp4"), parse_recipe("nvfp4:square=true")),
    (get_block_format("block-fp8-1x128"), parse_recipe("block")),
    *((get_format(name), parse_recipe("rowwise")) for name in ("e4m3", "e5m2", "int8")),
]
_EXACT = 1e-9
"""Shares are quotients: equal but for FP64's rounding."""


@dataclass
class Found:
    """What was found of one format and recipe.

    Attributes:
        cases: Tensors and directions.
        exact: Of these, predictions that say they are exact.
        wrong: Exact ones that differ, and others whose bounds do not hold.
        flushed: Worst difference of the estimated flushed share.
        slot: Whose that was.
        saturated: Worst difference of the saturated share.
    """

    cases: int = 0
    exact: int = 0
    wrong: int = 0
    flushed: float = 0.0
    slot: str = ""
    saturated: float = 0.0
    examples: list[str] = field(default_factory=list)


class Judge(pl.Callback):
    """Compares every operand on every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.found: dict[str, Found] = defaultdict(Found)
        self.tensors = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hooks every Linear."""
        for name, module in pl_module.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._forward(trainer, name))

    def _forward(self, trainer: pl.Trainer, name: str):  # noqa: ANN202
        def hook(module: nn.Linear, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            if trainer.global_step % self.every or not module.training:
                return
            self.judge(f"{name}:input", args[0])
            self.judge(f"{name}:weight", module.weight)
            output.register_hook(lambda gradient: self.judge(f"{name}:grad_output", gradient))

        return hook

    @torch.no_grad()
    def judge(self, slot: str, tensor: torch.Tensor) -> None:
        """Compares one operand under every format and recipe."""
        matrix = tensor.detach().reshape(-1, tensor.shape[-1])
        stats = tensor_stats(matrix, blocks=(16, 32))
        if not stats.nonzeros:
            return
        self.tensors += 1
        blocks = {(one.size, one.direction): one for one in stats.blocks.histograms}
        for fmt, recipe in TENSOR:
            cast = cast_of(Operand(fmt, recipe))
            scale, _ = cast.scaling.step({}, amax_of(matrix), fmt)
            told = predicted_shares(
                stats,
                fmt,
                recipe,
                scale=None if isinstance(recipe, CurrentScaling) else float(scale),
            )
            self._compare(slot, fmt.name, recipe, told, cast.count(matrix, 1, scale, None), stats)
        for fmt, recipe in PARTS:
            of_weights = fmt.name == "int8" or recipe_text(recipe) == "nvfp4:square=true"
            if of_weights and not slot.endswith(":weight"):
                continue  # what no target does
            cast = cast_of(Operand(fmt, recipe))
            for dim, direction in zip((1, 0), DIRECTIONS, strict=True):
                told = predicted_shares(
                    stats,
                    fmt,
                    recipe,
                    blocks=blocks,
                    direction=direction,
                    length=matrix.shape[dim],
                )
                counted = cast.count(matrix, dim, None, None)
                self._compare(f"{slot}, {direction}", fmt.name, recipe, told, counted, stats)

    def _compare(self, slot, fmt, recipe, told, counted, stats) -> None:  # noqa: ANN001
        found = self.found[f"{fmt} {recipe_text(recipe)}"]
        found.cases += 1
        for name, share, count in (
            ("flushed", told.flushed, counted.flushed),
            ("saturated", told.saturated, counted.saturated),
        ):
            truth = int(count) / stats.nonzeros
            sound = share.low - _EXACT <= truth <= share.high + _EXACT
            if not sound:
                found.wrong += 1
                found.examples.append(f"{slot} {name} {truth} {share}")
            apart = abs(share.value - truth)
            if name == "flushed":
                found.exact += share.exact
                if apart >= found.flushed:
                    found.flushed, found.slot = apart, slot
            else:
                found.saturated = max(found.saturated, apart)


def train(precision: str, steps: int, every: int) -> Judge:
    """Trains the demo and judges it."""
    pl.seed_everything(0, verbose=False)
    config, chosen, judge = GPTConfig(), precision_of(precision), Judge(every)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[judge],
        limit_val_batches=0,
        **chosen.trainer("cpu"),
    )
    loader = DataLoader(Windows(corpus(), config.context), 8, shuffle=True, drop_last=True)
    trainer.fit(GPT(config, chosen.optimizer), loader)
    return judge


def main() -> None:
    """Trains, prints the table, writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with quiet():
        judges = [
            train(precision, arguments.steps, arguments.every)
            for precision in ("bf16-mixed", "32-true")
        ]
    rows = []
    for name in judges[0].found:
        parts = [judge.found[name] for judge in judges]
        worst = max(parts, key=lambda part: part.flushed)
        rows.append(
            {
                "format and recipe": name,
                "cases": sum(part.cases for part in parts),
                "exact": sum(part.exact for part in parts),
                "wrong": sum(part.wrong for part in parts),
                "flushed": worst.flushed,
                "of": worst.slot,
                "saturated": max(part.saturated for part in parts),
            }
        )
        for example in [example for part in parts for example in part.examples][:2]:
            print("wrong:", name, example)
    table = Table(*(key for key in rows[0]))
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    content = {
        **machine("cpu"),
        "steps": arguments.steps,
        "every": arguments.every,
        "tensors": sum(judge.tensors for judge in judges),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
