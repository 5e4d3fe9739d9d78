"""A small real run that fills every table, and everything that reads a record."""

import io
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

import numwatch
from numwatch.diagnose.compare import compare
from numwatch.errors import NumwatchError
from numwatch.recipes.spec import parse_any_recipe
from numwatch.record import Run, iter_blocks, iter_rows
from numwatch.record.schema import TABLES
from numwatch.replay import Replayer
from numwatch.report import print_summary, summarize
from numwatch.report.comparison_lines import comparison_lines
from numwatch.report.finding_lines import diagnosis_lines
from numwatch.report.plain import plain
from numwatch.report.replay_json import replay_dict
from numwatch.report.replay_lines import replay_lines
from numwatch.report.tables import TABLES as VIEWS
from numwatch.report.tables import table_lines

TARGETS = ("amp", "fp8", "mxfp8", "mxfp4", "nvfp4", "int8-weights")
RECIPES = ("delayed:history=2", "current", "mx:rule=rceil", "nvfp4", "grad-scaler", "megatron")


def make_base(directory: Path) -> Path:
    """Trains eight FP16 steps, of which one fails, and returns the record's folder."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    with numwatch.watch(
        model,
        optimizer,
        scaler=scaler,
        dir=directory,
        every_n_steps=2,
        shadow_every_n_steps=4,
        summary=False,
    ) as watch:
        for step in range(8):
            x = torch.randn(32, 8) * (float("nan") if step == 5 else 1.0)

            def loss_of(model, x=x):
                return model(x).float().square().mean()

            watch.shadow(loss_of, x)
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(model)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss=loss)
            optimizer.zero_grad()
    return directory / "numwatch"


def read_all(directory: Path, base: Run, choice: int) -> str:
    """Reads a record in one of the ways a person asks for it; returns what came of it."""
    run = numwatch.open_run(directory)
    run.slots, run.precision, run.device, run.flags, run.events()
    told = _READERS[choice % len(_READERS)](run, base, choice // len(_READERS))
    assert all("\n" not in problem for problem in run.problems)
    return told if not run.problems else f"{told}, with problems"


def choice_of(data: bytes) -> int:
    """A choice that an input always makes."""
    return zlib.crc32(data)


def _tables(run, _base, _choice):
    for name in TABLES:
        for table in run.batches(name):
            if name == "tensors":
                list(iter_rows(table))
            elif name == "blocks":
                list(iter_blocks(table))
    return "tables"


def _report(run, _base, choice):
    summary = summarize(run)
    json.dumps(summary.as_dict(), allow_nan=False)
    print_summary(summary, Console(file=io.StringIO(), width=(80, 120)[choice % 2]))
    table_lines(summary, VIEWS)
    return "report"


def _diagnosis(run, _base, choice):
    findings = numwatch.diagnose(run)
    json.dumps(plain(findings), allow_nan=False)
    list(diagnosis_lines(findings, (60, 120)[choice % 2]))
    failed = [each.cause for each in findings if each.rule == "rule-failed"]
    assert not failed, failed
    return "diagnosis of " + " ".join(sorted({each.rule for each in findings}))


def _comparison(run, base, choice):
    found = compare(run, base) if choice % 2 else compare(base, run)
    json.dumps(plain(found.as_dict()), allow_nan=False)
    list(comparison_lines(found, 12))
    return "comparison"


def _plan(run, _base, choice):
    plan = numwatch.recommend(run, target=TARGETS[choice % len(TARGETS)])
    numwatch.plan.parse_plan(numwatch.plan.yaml_text.plan_text(plan))
    return "plan"


def _replay(run, _base, choice):
    found = Replayer(run)(parse_any_recipe(RECIPES[choice % len(RECIPES)]))
    json.dumps(replay_dict(found), allow_nan=False)
    list(replay_lines(found, 12))
    return "replay"


_READERS = (_tables, _report, _diagnosis, _diagnosis, _comparison, _plan, _replay)


def refused(read) -> str:
    """Calls a reader; returns what came of it, where it refuses in one clear line too."""
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        try:
            return read()
        except NumwatchError as error:
            refusal = error
    line = str(refusal)
    assert line.isprintable(), line
    assert len(line) < 10_000
    return f"refused: {type(refusal).__name__}"
